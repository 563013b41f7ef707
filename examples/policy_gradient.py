"""Policy gradient with a learnt baseline: keep a pole upright on a cart, 16 carts at once; the step branches on data.

python examples/policy_gradient.py [--eager] [--resume]

The data are states to start from, near the upright one. The score is how many of 100 time steps a pole stays up, on
average over the starts kept for it, when the cart takes the likelier action.
"""

from __future__ import annotations

import math

import torch
from fit import Options, Result, example, finish, fit, loaders
from torch import nn
from torch.distributions import Categorical
from torch.utils.data import TensorDataset

import graphc

CARTS, STEPS, LONGEST = 16, 32, 100


def move(state: torch.Tensor, push: torch.Tensor) -> torch.Tensor:
    """One time step of 0.02 s: states (N, 4) = place, speed, angle, turning; push (N,) of 0 (left) and 1 (right).

    Source: Barto, Sutton, Anderson, "Neuronlike adaptive elements that can solve difficult learning control problems",
    1983.
    """
    place, speed, angle, turning = state.unbind(1)
    force = 20.0 * push - 10.0
    pulled = (force + 0.05 * turning**2 * torch.sin(angle)) / 1.1
    turned = (9.8 * torch.sin(angle) - torch.cos(angle) * pulled) / (0.5 * (4 / 3 - 0.1 * torch.cos(angle) ** 2 / 1.1))
    pushed = pulled - 0.05 * turned * torch.cos(angle) / 1.1
    step = 0.02
    return torch.stack(
        [place + step * speed, speed + step * pushed, angle + step * turning, turning + step * turned], 1
    )


def starts(samples: int, seed: int) -> TensorDataset:
    """States to start from (N, 4), each number within 0.05 of upright and at rest."""
    return TensorDataset(torch.rand(samples, 4, generator=torch.Generator().manual_seed(seed)) * 0.1 - 0.05)


def fallen(state: torch.Tensor) -> torch.Tensor:
    """Which carts have left the track or dropped their pole: (N,) bool."""
    return (state[:, 0].abs() > 2.4) | (state[:, 2].abs() > 12 * math.pi / 180)


class Carts(nn.Module):
    """The carts; their state is a buffer, so that it is saved and restored with everything else."""

    state: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(CARTS, 4))

    def step(self, push: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """Move; carts that fell start anew, from `start` (N, 4). Gives which fell, (N,) float32."""
        self.state = move(self.state, push)
        done = fallen(self.state)
        if done.any():
            self.state = torch.where(done.unsqueeze(1), start, self.state)
        return done.float()


class Policy(nn.Module):
    """States (N, 4) -> logits of the actions (N, 2) and how long the pole will stay up (N,), in tens of steps."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.affine = nn.Linear(4, hidden)
        self.action, self.value = nn.Linear(hidden, 2), nn.Linear(hidden, 1)

    def forward(self, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.tanh(self.affine(state))
        return self.action(x), self.value(x).squeeze(-1)


@example(epochs=8, samples=320, patience=8)
def main(options: Options) -> Result:
    data = loaders(starts(options.samples, options.seed), CARTS, options)
    carts, policy = Carts(), Policy()
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    env_step = graphc.compile(carts.step)

    @graphc.compile
    @torch.no_grad()
    def act(state: torch.Tensor) -> torch.Tensor:
        return Categorical(logits=policy(state)[0]).sample()

    @graphc.compile
    def update(states: torch.Tensor, actions: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        logits, values = policy(states)
        returns, following = [], values[-1].detach()
        for end in ends.flip(0):  # backwards in time
            following = 0.1 + 0.97 * following * (1 - end)
            returns.insert(0, following)
        wanted = torch.stack(returns)
        advantage = wanted - values[:-1]
        chosen = Categorical(logits=logits[:-1]).log_prob(actions)
        entropy = Categorical(logits=logits[:-1]).entropy().mean()
        loss = advantage.square().mean() - (chosen * advantage.detach()).mean() - 0.01 * entropy
        loss.backward()
        if nn.utils.clip_grad_norm_(policy.parameters(), 2.0) < 100:  # a wild batch is left out
            optimizer.step()
        return loss.detach()

    def train_step(start: torch.Tensor) -> torch.Tensor:
        start = start[torch.arange(CARTS) % len(start)]  # the last batch may have fewer
        states, actions, ends = [carts.state], [], []
        for _ in range(STEPS):
            actions.append(act(carts.state))
            ends.append(env_step(actions[-1], start))
            states.append(carts.state)
        return update(torch.stack(states), torch.stack(actions), torch.stack(ends))

    @torch.no_grad()
    def mean_steps(batches) -> float:
        state = torch.cat([start for (start,) in batches])
        up = torch.ones(len(state), dtype=torch.bool)
        total = 0
        for _ in range(LONGEST):
            state = move(state, policy(state)[0].argmax(1))
            up &= ~fallen(state)
            total += int(up.sum())
        return total / len(state)

    result = fit(
        options, policy, train_step, data.train, lambda: mean_steps(data.valid),
        keep={"optimizer": optimizer, "carts": carts},
    )  # fmt: skip
    return finish(result, mean_steps(data.test), act, env_step, update)


if __name__ == "__main__":
    main()
