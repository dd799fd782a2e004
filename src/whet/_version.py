"""The version, where everything may import it from."""

from typing import Final

__version__: Final = "0.1.0"
