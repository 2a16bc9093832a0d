"""The backbone, its update and its evaluation as one would write them down first, to measure against.

The same architecture, batch and number format: every token goes through every layer and the final norm, torch's fused
attention takes a mask over padding, autocast casts, `backward` fills one gradient a parameter, AdamW updates them one
by one. Batches come from the same vectorised gather. A decision puts the last steps of every episode through the whole
network.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptdiffuser.data.plans import Planner
from promptdiffuser.data.windows import PromptPool, ResidentEpisodes, Segments
from promptdiffuser.models.backbone import BackboneConfig


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (part[:, None] for part in self.query_key_value(self.norm_1(x)).chunk(3, dim=-1))
        x = x + self.out(F.scaled_dot_product_attention(query, key, value, attn_mask=mask)[:, 0])
        return x + self.mlp(self.norm_2(x))


class StraightforwardBackbone(nn.Module):
    """Prompt-DT with one head."""

    def __init__(self, config: BackboneConfig, state_dim: int, action_dim: int, horizon: int) -> None:
        super().__init__()
        width = config.width
        self.embeddings = nn.ModuleDict(
            {
                name: nn.ModuleDict(
                    {
                        "return": nn.Linear(1, width),
                        "state": nn.Linear(state_dim, width),
                        "action": nn.Linear(action_dim, width),
                        "time": nn.Embedding(horizon, width),
                    }
                )
                for name in ("prompt", "history")
            }
        )
        self.norm, self.final_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(config.layers))
        self.head = nn.Linear(width, action_dim)

    def embed(self, name: str, steps: Segments) -> Tensor:
        to, time = self.embeddings[name], self.embeddings[name]["time"](steps.timesteps)
        inputs = {"return": steps.returns_to_go[..., None], "state": steps.states, "action": steps.actions}
        return torch.stack([to[part](value) + time for part, value in inputs.items()], dim=2).flatten(1, 2)

    def forward(self, history: Segments, prompt: Segments) -> Tensor:
        x = self.norm(torch.cat([self.embed("prompt", prompt), self.embed("history", history)], dim=1))
        size = x.shape[1]
        valid = torch.cat([prompt.valid, history.valid], dim=1).repeat_interleave(3, dim=1)
        # A padded token sees itself, or its row of the softmax would be empty.
        mask = torch.ones(size, size, dtype=torch.bool).tril() & valid[:, None] | torch.eye(size, dtype=torch.bool)
        for layer in self.layers:
            x = layer(x, mask[:, None])
        history_tokens = self.final_norm(x)[:, 3 * prompt.states.shape[1] :]
        return torch.tanh(self.head(history_tokens.unflatten(1, (-1, 3))[:, :, 1]))


class StraightforwardTraining:
    """One update a call."""

    def __init__(
        self, model: StraightforwardBackbone, windows: ResidentEpisodes, pool: PromptPool, planner: Planner, bf16: bool
    ) -> None:
        self.model, self.windows, self.pool, self.planner, self.step = model, windows, pool, planner, 0
        self.bf16 = bf16
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)

    def advance(self) -> float:
        plan = self.planner.at(self.step)
        _, history = self.windows.windows(self.step, plan)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            actions = self.model(history, self.pool.prompts_at(plan.prompt_episodes)).float()
        loss = (actions - history.actions)[history.valid].square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.25)
        self.optimizer.step()
        self.step += 1
        return loss.item()


class StraightforwardPolicy:
    """Decides for episodes in lockstep from a window of their last steps, computed anew at every step."""

    def __init__(self, model: StraightforwardBackbone, prompts: Segments, history: int, bf16: bool) -> None:
        self.model, self.prompts, self.history, self.bf16 = model.eval(), prompts, history, bf16
        num = len(prompts)
        self.returns_to_go, self.rewards = torch.zeros(num, 1), torch.zeros(num, 1)
        self.states = torch.zeros(num, 0, prompts.states.shape[-1])
        self.actions = torch.zeros(num, 0, prompts.actions.shape[-1])

    @torch.no_grad()
    def act(self, states: Tensor) -> Tensor:
        num, step = len(states), self.states.shape[1]
        self.states = torch.cat([self.states, states[:, None]], dim=1)
        self.actions = torch.cat([self.actions, torch.zeros(num, 1, self.actions.shape[-1])], dim=1)
        steps = torch.arange(max(0, step + 1 - self.history), step + 1)
        history = Segments(
            returns_to_go=self.returns_to_go[:, steps],
            states=self.states[:, steps],
            actions=self.actions[:, steps],
            rewards=torch.zeros(num, len(steps)),
            timesteps=steps.expand(num, -1),
            valid=torch.ones(num, len(steps), dtype=torch.bool),
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            action = self.model(history, self.prompts)[:, -1].float()
        self.actions[:, -1] = action
        return action

    def observe(self, scaled_rewards: Tensor) -> None:
        next_return = self.returns_to_go[:, -1:] - scaled_rewards[:, None]
        self.returns_to_go = torch.cat([self.returns_to_go, next_return], dim=1)
