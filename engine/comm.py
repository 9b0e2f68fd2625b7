"""What the ranks of a replica say to each other while they compute.

A `Group` is a set of ranks with collectives among them; `Comm` holds the groups that one rank is
in. A group of one does nothing and costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


class Group(Protocol):
    """Some ranks, numbered from 0 within the group. Every member calls the same in turn.

    A member that has died or falls silent ends the call on the others with `Unavailable`.
    """

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Sum over the members, in place."""

    def all_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Every member's tensor, all of one shape."""

    def all_to_all(
        self, rows: torch.Tensor, sent: Sequence[int], received: Sequence[int]
    ) -> torch.Tensor:
        """Exchange rows: the first ``sent[0]`` go to member 0, and so on.

        Returns ``[sum(received), ...]``, member 0's rows first."""

    def send(self, tensor: torch.Tensor, to: int) -> None:
        """Hand a tensor to a member, which must not change any more; may return before it left."""

    def receive(self, tensor: torch.Tensor, source: int) -> None:
        """Fill `tensor` with what member `source` sent; in the order of sending."""


class Alone:
    """The group of one."""

    rank = 0
    size = 1

    def all_reduce(self, tensor: torch.Tensor) -> None:
        pass

    def all_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        return [tensor]

    def all_to_all(
        self, rows: torch.Tensor, sent: Sequence[int], received: Sequence[int]
    ) -> torch.Tensor:
        return rows

    def send(self, tensor: torch.Tensor, to: int) -> None:
        raise AssertionError("there is nobody to send to")

    def receive(self, tensor: torch.Tensor, source: int) -> None:
        raise AssertionError("there is nobody to receive from")


@dataclass(frozen=True, slots=True)
class Comm:
    """The groups of one rank.

    tensor: ranks that share this rank's stage and data-parallel group. experts: the ranks that
    exchange tokens with this one, in the order of their shares of the experts. world: all ranks
    of the replica, by rank. share, shares: which part of its group's tokens this rank routes.
    """

    tensor: Group
    experts: Group
    world: Group
    share: int = 0
    shares: int = 1

    @staticmethod
    def alone() -> Comm:
        one = Alone()
        return Comm(one, one, one)
