"""Fixtures of all tests of the questions that a dataset answers."""

from __future__ import annotations

from tests.questions.study import study

__all__ = ["study"]
