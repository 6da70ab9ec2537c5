"""The repository that is shown, what is asked, and the script that answers where there is no model."""

import subprocess
from pathlib import Path
from typing import Any

PRICES = '''\
"""What a basket costs: python3 shop.pyz PRICE... DISCOUNT"""

import sys


def total(prices, discount=0):
    """The sum of the prices, less a discount in percent."""
    return sum(prices) * (100 + discount) / 100


def main():
    *prices, discount = map(float, sys.argv[1:])
    print(f"{total(prices, discount):.2f}")
'''
TESTS = """\
import unittest

from prices import total


class Total(unittest.TestCase):
    def test_sum(self):
        self.assertEqual(total([10, 20]), 30)

    def test_discount(self):
        self.assertEqual(total([100], discount=25), 75)
"""
BUILD = """\
#!/bin/sh
# Tests the shop, and packs it up: shop.pyz is what the customers get.
set -e
PYTHONPATH=src python3 -m unittest discover -q -s tests
python3 -m zipapp src --main prices:main --output shop.pyz
echo "built shop.pyz"
"""
FILES = {
    "src/prices.py": PRICES,
    "tests/test_prices.py": TESTS,
    "build.sh": BUILD,
    "catalogue.txt": "one\ntwo\nthree\n",
    ".gitignore": "__pycache__/\nshop.pyz\n",
}

WRONG = "    return sum(prices) * (100 + discount) / 100"
RIGHT = "    return sum(prices) * (100 - discount) / 100"

FIX = "sh build.sh fails: mend the code, not the tests, and build again until shop.pyz is right"
QUESTION = "What does build.sh make, and how is that run? Two sentences, and change nothing"

SCRIPT: Any = {
    "scripts": [
        {
            "task": FIX,
            "turns": [
                {
                    "delay": 1.0,
                    "say": "I am a script, not a model; but what I do is done. I build first.",
                    "calls": [{"tool": "bash", "input": {"command": "sh build.sh 2>&1 | tail -7"}}],
                },
                {
                    "delay": 1.5,
                    "say": "A discount makes it dearer.",
                    "calls": [{"tool": "read", "input": {"path": "src/prices.py"}}],
                },
                {
                    "delay": 1.5,
                    "calls": [
                        {"tool": "note", "input": {"text": "total() adds the discount; take it off, and build"}},
                        {"tool": "edit", "input": {"path": "src/prices.py", "old": WRONG, "new": RIGHT}},
                    ],
                },
                {
                    "delay": 1.5,
                    "calls": [
                        {"tool": "bash", "input": {"command": "sh build.sh 2>&1 && python3 shop.pyz 100 25"}},
                    ],
                },
                {
                    "delay": 1.5,
                    "say": "Mended: `total` added the discount instead of taking it off. The build passes, and 100 less"
                    " 25 % is 75.00. (This is a script, not a model.)",
                },
            ],
        },
        {
            "task": QUESTION,
            "turns": [
                {"calls": [{"tool": "read", "input": {"path": "build.sh"}}]},
                {
                    "pause": 0.03,
                    "say": "It tests the shop and packs it up as `shop.pyz`. Run it with `python3 shop.pyz`, the prices"
                    " and last a discount in percent. (This is a script, not a model.)",
                },
            ],
        },
    ]
}


def make(folder: Path, gate: Path, environment: dict[str, str]) -> None:
    """The repository. Its checkout is held back until there is a file ``gate``, as a large one would take long."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    waiting = f"for n in $(seq 600); do [ -e '{gate}' ] && break; sleep 0.1; done; cat"
    for words in (
        ("init", "--quiet"),
        ("add", "."),
        ("commit", "--quiet", "--message", "A shop whose build is broken"),
        ("config", "filter.gate.smudge", waiting),
    ):
        subprocess.run(["git", *words], cwd=folder, env=environment, check=True)
    (folder / ".git" / "info" / "attributes").write_text("catalogue.txt filter=gate\n")


def open_gate(folder: Path, environment: dict[str, str]) -> None:
    """For good: whoever keeps the repository does not wait in it."""
    subprocess.run(
        ["git", "config", "--remove-section", "filter.gate"], cwd=folder, env=environment, capture_output=True
    )
    (folder / ".git" / "info" / "attributes").unlink(missing_ok=True)
