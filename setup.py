"""What setup.cfg cannot say: the one part in C. Without a compiler the feed does the same in Python, more slowly."""

from setuptools import Extension, setup

flags = ["-O3", "-Wall", "-Wextra", "-Wno-unused-parameter"]
setup(
    ext_modules=[
        Extension("jeoparda.feed._native", ["jeoparda/feed/_native.c"], extra_compile_args=flags, optional=True)
    ]
)
