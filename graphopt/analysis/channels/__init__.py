"""The channels of a graph: which positions of which axes must be removed together."""

from __future__ import annotations

from graphopt.analysis.channels.groups import Channels, Group, channels, connections
from graphopt.analysis.channels.labels import Labels, Role, Slot

__all__ = ["Channels", "Group", "Labels", "Role", "Slot", "channels", "connections"]
