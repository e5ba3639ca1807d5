"""Where the photographs and weights are that some tests use and the project does not hold."""

from pathlib import Path

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
