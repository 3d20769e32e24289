"""Evaluation: every patch of a split once, on all ranks, and the figures per class."""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from jeoparda import checkpoint, losses
from jeoparda.comm import Backend, Comm
from jeoparda.config import REQUIRED, opt, recipe
from jeoparda.errors import CheckpointError
from jeoparda.feed import Feed, FeedRecipe, Plan
from jeoparda.metrics import MultilabelScore, multilabel
from jeoparda.models import ModelRecipe, build
from jeoparda.nomenclature import nomenclature
from jeoparda.order import Order
from jeoparda.raster import png
from jeoparda.sensors import sensor
from jeoparda.store import Store
