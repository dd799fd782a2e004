"""Static programs: a compiled graph as C sources and one object, for devices without an operating system or runtime."""

from __future__ import annotations
