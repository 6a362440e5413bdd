"""The version of SGLang whose source the figures follow."""

from __future__ import annotations

VERSION = "0.5.23"
