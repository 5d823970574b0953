"""Take in one object that nobody recorded, on its own word: every byte is read, what it says is ``testimony``'s."""

from __future__ import annotations
