"""What the data check finds, and how it is told to people."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from vton.data.folder import Folder, Split
from vton.data.images import ADVICE
from vton.data.sample import DataError

Severity = Literal["required", "optional", "note"]
SEVERITIES: tuple[Severity, ...] = ("note", "required", "optional")  # in the order of the report
EXAMPLES = 3  # files that are named for each kind of problem


@dataclass(frozen=True)
class Problem:
    """One finding.

    A "required" one stops training, an "optional" one is about files that this configuration does
    not read, a "note" is not a problem.
    """

    dataset: str
    split: str
    sample_id: str  # "" when it is about a whole list or folder
    path: str
    severity: Severity
    message: str  # what is wrong and what to do
    kind: str = ""  # what is wrong, worded alike for all problems of a kind; "" for a unique one
    advice: str = ""  # what to do

    def __str__(self) -> str:
        where = " ".join(filter(None, (self.dataset, self.split, self.sample_id)))
        return f"{where}: {self.message}"


def about_list(folder: Folder, split: Split, error: DataError) -> Problem:
    """An error about a whole list or folder, as a problem.

    Data set and split, which the problem has as fields, are cut from its message.
    """
    message = str(error).removesuffix(ADVICE).strip()
    for where in (f"{folder.dataset} {split}", folder.dataset):
        message = message.removeprefix(where).removeprefix(":").strip()
    return Problem(folder.dataset, split, "", str(folder.root), "required", message)


def format_problems(problems: Sequence[Problem], where: str = "") -> str:
    """The findings for people: notes, then problems by kind with examples, then their number.

    where: the file that has the whole list, "" if there is none
    """
    groups: dict[tuple, list[Problem]] = {}
    for problem in _by_severity(problems):
        groups.setdefault((problem.severity, *_kind(problem)), []).append(problem)
    lines = list(map(_in_one_line, groups.values()))
    if any(len(group) > EXAMPLES for group in groups.values()):
        if where:
            lines.append(f"The whole list is in {where}.")
        else:
            lines.append("--out FILE writes the whole list, --json prints it.")
    count = Counter(problem.severity for problem in problems)
    if count["required"] or count["optional"]:
        lines.append(f"{count['required']} required and {count['optional']} optional problems.")
    else:
        lines.append("All files can be read.")
    return "\n".join(lines)


def list_problems(problems: Sequence[Problem]) -> str:
    """Every note and problem on a line of its own."""
    return "\n".join(f"{problem.severity:<9} {problem}" for problem in _by_severity(problems))


def _by_severity(problems: Sequence[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda problem: SEVERITIES.index(problem.severity))


def _in_one_line(group: Sequence[Problem]) -> str:
    """A problem, or the number of those of one kind with the first few as examples."""
    first = group[0]
    if len(group) == 1:
        return f"{first.severity:<9} {first}"
    place = " ".join(filter(None, (first.dataset, first.split)))
    examples = [f"{one.sample_id} ({one.path})" for one in group[:EXAMPLES]]
    more = ", ..." if len(group) > EXAMPLES else ""
    line = f"{first.severity:<9} {place}: {len(group):,} x {first.kind}: {', '.join(examples)}"
    return f"{line}{more}. {first.advice}".rstrip()


def _kind(problem: Problem) -> tuple:
    """Equal for problems of one kind, up to numbers; problems without a kind stand alone."""
    if not problem.kind:
        return (problem,)
    return problem.split, _without_numbers(problem.kind), problem.advice


@lru_cache(maxsize=1000)
def _without_numbers(words: str) -> str:
    return re.sub(r"[0-9]+(?:[.,][0-9]+)*", "0", words)
