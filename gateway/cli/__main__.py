"""`python -m gateway.cli`: the same as the `multimoe` command, for where no script is on the path."""

from gateway.cli import app

if __name__ == "__main__":
    app()
