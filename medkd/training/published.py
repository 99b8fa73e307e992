"""Following a protocol when a segmentation network is trained: its rows are checked when it is read, and set what they
say before anything is built.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from medkd.core.dataset import DatasetDescription
from medkd.core.plan import Plan
from medkd.core.protocol import Protocol
from medkd.core.protocol_files import find_protocol
from medkd.core.protocol_rows import NO_PROTOCOL, Published, check_rows, published_for, with_settings
from medkd.distillation import METHODS, parameters_of
from medkd.networks import NETWORKS

_log = logging.getLogger(__name__)


def check_protocol(protocol: Protocol) -> None:
    """See that every row of a protocol is about methods, parameters, networks and settings that exist.

    Raises:
        MedkdError: the first one that is not.
    """
    methods = {name: parameters_of(METHODS[name]) for name in METHODS}
    check_rows(protocol.rows, protocol.name, protocol.training, methods, NETWORKS)


def chosen_plan(plan: Plan, text: str | None, description: DatasetDescription) -> Plan:
    """The plan with the protocol that a training asks for; preprocessing, patches and networks stay the plan's.

    Args:
        plan: of the data set.
        text: value of ``--protocol``; None keeps the plan's, ``none`` takes it out.
        description: of the data set.

    Raises:
        PlanError: there is no such protocol for this data set.
    """
    if text is None:
        return plan
    if text == NO_PROTOCOL:
        return replace(plan, protocol=None)
    found = find_protocol(text, description.extra)
    if plan.protocol is None or plan.protocol.preprocessing != found.preprocessing:
        _log.warning(
            "the data were preprocessed by %s, not by %s, which sets the rest (medkd_plan_and_preprocess --protocol "
            "%s --overwrite-plan preprocesses anew)",
            plan.protocol.name if plan.protocol else "medkd's own plan",
            found.name,
            text,
        )
    return replace(plan, protocol=found)


def followed(plan: Plan, method: str | None, network: str, teacher: str | None) -> tuple[Plan, Published]:
    """The plan as its protocol's rows for this training say, and what they say.

    Raises:
        DataError: a setting has the wrong form.
    """
    protocol = plan.protocol
    if protocol is None:
        return plan, Published()
    found = published_for(protocol.rows, method, network, teacher)
    training = with_settings(protocol.training, found.training, f"Protocol {protocol.name}")
    return replace(plan, protocol=replace(protocol, training=training)), found
