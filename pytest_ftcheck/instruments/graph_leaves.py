"""The tensors that the graph of a result ends in."""

from __future__ import annotations

import torch


def leaves_of(result: torch.Tensor | None) -> list[torch.Tensor]:
    """The leaves that gradients of ``result`` would be written to, each once; none where it has no graph.

    >>> weight = torch.ones(2, requires_grad=True)
    >>> [leaf is weight for leaf in leaves_of((weight * 2).sum())]
    [True]
    """
    todo = [result.grad_fn] if result is not None and result.grad_fn is not None else []
    seen, found = set(todo), []
    while todo:
        node = todo.pop()
        variable = getattr(node, "variable", None)
        if isinstance(variable, torch.Tensor):
            found.append(variable)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)
    return found
