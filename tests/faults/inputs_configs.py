"""Wrong configurations and wrong folders for the commands on finished runs; all are refused before torch is imported."""
from __future__ import annotations

from inputs import Case

CASES = [
    Case("unknown language", ["lang=jpm"], ("lang=jpm", "did you mean 'jpn'")),
    Case("code switch above one", ["method.code_switch=1.5"], ("method.code_switch=1.5", "must be in [0, 1]")),
    Case("data file that is not there", ["data=alpaca", "data.path=nowhere.json"], ("nowhere.json",)),
]
