"""What ends the decoding of something: a place and a sentence."""

from __future__ import annotations


class Damage(Exception):
    """Something that cannot be. `at` counts bytes of whatever is being read: a stream, a ring, a file."""

    def __init__(self, at: int, sentence: str) -> None:
        super().__init__(sentence)
        self.at, self.sentence = at, sentence
