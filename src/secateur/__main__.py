"""`python -m secateur`: the command, where its script is not on the path."""

from secateur.cli import main

if __name__ == "__main__":
    main()
