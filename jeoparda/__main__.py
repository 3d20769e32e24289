from jeoparda.cli import main

main()
