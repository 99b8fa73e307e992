"""What a search tried its values on, and whether that is another by now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medkd.core.made_from import prepared_cases, prepared_plan
from medkd.core.run import PLANS_FILE


@dataclass(frozen=True, kw_only=True)
class SearchedOn:
    """A part of ``trials.json``; all is empty where an earlier version searched, which is taken as it is.

    Attributes:
        store: folder of the preprocessed cases.
        cases: case of it → hash of what it was made from, and how.
        plan: hash of the configuration in the data set's plan.
    """

    store: str = ""
    cases: Mapping[str, str] = field(default_factory=dict)
    plan: str = ""

    @classmethod
    def now(cls, store: Path, cases: Iterable[str]) -> SearchedOn:
        """These cases of a store, as they are."""
        return cls(store=str(store), cases=prepared_cases(store, cases), plan=prepared_plan(store.parent, store.name))

    def changed(self) -> str | None:
        """What has happened to them; None where they are the same, are not there, or nobody knows."""
        store = Path(self.store)
        now = SearchedOn.now(store, self.cases)
        found = [case for case, digest in now.cases.items() if digest != self.cases[case]]
        if found:
            return (
                f"{len(found)} of the {len(self.cases)} cases on which values were searched were preprocessed anew "
                f"from other files, or otherwise, for example {found[0]}"
            )
        if self.plan and now.plan and self.plan != now.plan:
            return f"{store.parent / PLANS_FILE} is another than when values were searched"
        return None
