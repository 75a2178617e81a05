"""RL-IA: E-IM improved by reinforcement learning on labelled target rows (ML-IPD's baseline, METHODS.md section 3)."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from xalign.cache import Stage
from xalign.config import ConfigError, choice, within
from xalign.methods.prompted import Prompted

if TYPE_CHECKING:
    from torch import Tensor

    from xalign.config import Run
    from xalign.data.choices import ChoiceBatch
    from xalign.data.packing import Batch, Row
    from xalign.training.losses import LossOut, Targets


@dataclass(frozen=True)
class RLIA(Prompted):
    """From E-IM, advantage actor-critic against the labels of the target rows.

    An encoder takes one action a row: it draws an option; the reward is 1 for the right one. A causal model draws an
    answer token by token; the reward of the whole answer is that of each of its tokens.

    Attributes:
        value_coef: weight of the critic's squared error.
        entropy: weight of the policy's entropy, which is raised.
        kl: weight of KL(policy || E-IM).
        reward: of a causal model's answer: chrF, or 1 for an exact match and 0 for all else.
        max_new_tokens: cap of a drawn answer, in tokens.
        epochs: passes over the rows, in place of the trainer's.
        rl_lr: learning rate of this stage, relative to E-IM's.
    """

    name: ClassVar[str] = "rl_ia"
    effort: ClassVar[float] = 1.4

    value_coef: float = within(0.5, low=0)
    entropy: float = within(0.01, low=0)
    kl: float = within(0.05, low=0)
    reward: str = choice("chrf", "chrf", "exact")
    max_new_tokens: int = within(24, low=1)
    epochs: int = within(2, low=1)
    rl_lr: float = within(0.5, high=10, above=0)

    def check_run(self, run: Run) -> None:
        """Also refuse what cannot sample answers: partitioned weights, and a context too short for an answer."""
        super().check_run(run)
        if run.backbone.kind != "causal":
            return
        if run.trainer.zero == 3:
            raise ConfigError("trainer.zero=3: method rl_ia draws answers from the model while it trains, which weights spread "
                              "over processes do not allow; set trainer.zero=2")
        if run.trainer.max_length + self.max_new_tokens > run.backbone.max_length:
            raise ConfigError(f"method.max_new_tokens={self.max_new_tokens}: after a row of trainer.max_length="
                              f"{run.trainer.max_length} it exceeds backbone.max_length={run.backbone.max_length}; lower one of them")

    def rows(self, run: Run) -> Stage:
        """The labelled target rows in their frames."""
        return self.target_rows(run, self.frame(run))

    def training_rows(self, run: Run) -> tuple[Stage, ...]:
        """E-IM's rows and the target rows."""
        return self.eim_rows(run), self.rows(run)

    def model_stage(self, run: Run) -> Stage:
        """E-IM after the actor-critic; the last weights, because a held-out loss does not tell a better policy."""
        from xalign.training.stage import train_stage

        eim = self.eim_stage(run)
        return train_stage(run, self, self.rows(run), eim, teacher=eim, lr_factor=self.rl_lr, epochs=self.epochs,
                           valid_share=0.0, patience=0)

    def loss_params(self) -> dict[str, Any]:
        """Every coefficient; the stage's own parameters hold epochs and rate."""
        own = {k: v for k, v in asdict(self).items() if k not in ("labelled", "epochs", "rl_lr")}
        return {"loss": "a2c", "weighting": "row", **own}

    def row_weights(self, rows: Sequence[Row]) -> list[float]:
        """total / (rows * supervised tokens of the row), total being the supervised tokens of all rows.

        The trainer divides a step's loss by the gold answers' tokens, which say nothing here: a row counts as one, however
        long its gold answer is. `loss` multiplies its mean over the drawn tokens with weight and gold tokens: the same number
        for every row, whose quotient by the step's gold tokens is, on average over steps, 1 / rows of the step. An encoder's
        row has one target and the weight 1; there the mean over rows is exact in every step.
        """
        total = sum(row.targets for row in rows)
        return [row.weight * total / (len(rows) * row.targets) for row in rows]

    def extend(self, backbone: Any) -> None:
        """Attach the critic, V = linear in the state behind the logits.

        It starts at 0 and shares the trunk with the policy: its error trains the trunk too, as is usual for actor-critics.
        """
        import torch

        config = getattr(backbone.model, "encoder", backbone.model).config
        value = torch.nn.Linear(getattr(config, "get_text_config", lambda: config)().hidden_size, 1)
        torch.nn.init.zeros_(value.weight)
        torch.nn.init.zeros_(value.bias)
        backbone.attach("value", value)

    def loss(self, model: Any, batch: Batch | ChoiceBatch) -> LossOut:
        """Draw, reward and compare with E-IM.

        Returns:
            sum: sum over rows of weight * (mean over its targets of `actor_critic`'s terms); logs, weighted alike: ``reward``,
            ``value`` (what the critic expects of it), ``entropy`` and ``kl`` in nats.
        """
        import torch

        from xalign.data.choices import ChoiceBatch
        from xalign.training.losses import LossOut, aids, bare, targets
        from xalign.training.rollouts import choose, uniforms

        if isinstance(batch, ChoiceBatch):
            found = targets(model, batch, states=True)
            drawn = choose(found.logits, uniforms([batch.rows[i] for i in found.rows.tolist()], 1)[:, 0])
            worth = (drawn == found.labels).float()
        else:
            batch, rewards = self.play(model, batch)
            found = targets(model, batch, states=True)
            drawn, worth = found.labels, rewards[found.rows]
        with torch.no_grad():
            reference = targets(aids(model).teacher.model, batch).logits
        value = bare(model).value(found.states)[:, 0].float()
        return LossOut(*self.actor_critic(found, drawn, worth, value, reference))

    def actor_critic(self, found: Targets, drawn: Tensor, worth: Tensor, value: Tensor,
                     reference: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """sum over targets of weight * (-A log pi(drawn) + value_coef (R - V)^2 - entropy H(pi) + kl KL(pi || reference)).

        A = R - V is a constant to the gradient.

        Args:
            found: the policy's predictions, n targets.
            drawn: [n] the options or tokens drawn.
            worth: [n] R.
            value: [n] V.
            reference: [n, V] E-IM's logits.
        Returns:
            the sum; n; the logs.
        """
        log_pi, log_ref = log_policy(found.logits), log_policy(reference)
        pi = log_pi.exp()
        entropy, kl = -(pi * log_pi).sum(-1), (pi * (log_pi - log_ref)).sum(-1)
        gain = (worth - value).detach() * log_pi.gather(-1, drawn[:, None])[:, 0]
        loss = -gain + self.value_coef * (worth - value) ** 2 - self.entropy * entropy + self.kl * kl
        logs = {"reward": worth, "value": value, "entropy": entropy, "kl": kl}
        return (loss * found.weights).sum(), found.count, {k: (v.detach() * found.weights).sum() for k, v in logs.items()}

    def play(self, model: Any, batch: Batch) -> tuple[Batch, Tensor]:
        """The batch with an answer drawn for each row in place of the gold one, and [rows] the answers' rewards.

        Each drawn token weighs so that the row's tokens together weigh as much as the gold ones did.
        """
        import torch

        from xalign.data.choices import collate
        from xalign.training.losses import aids, bare
        from xalign.training.rollouts import reward, sample, uniforms

        device, rows, backbone = batch.input_ids.device, [r for r in batch.rows if r.targets], aids(model).backbone
        if not rows:  # a process without rows takes part with none
            return batch, torch.zeros(len(batch.rows), device=device)
        answers = sample(bare(model), [r.ids[:r.n_prompt] for r in rows], self.max_new_tokens, backbone.stop,
                         uniforms(rows, self.max_new_tokens))
        drawn = [replace(r, ids=(*r.ids[:r.n_prompt], *answer), weight=r.weight * r.targets / len(answer))
                 for r, answer in zip(rows, answers, strict=True)]
        texts, gold = (backbone.tokenizer.batch_decode([list(r.ids[r.n_prompt:]) for r in part], skip_special_tokens=True)
                       for part in (drawn, rows))
        rewards = [reward(self.reward, text, right) for text, right in zip(texts, gold, strict=True)]
        return collate(drawn, batch.layout is not None).to(device), torch.tensor(rewards, device=device)


def log_policy(logits: Tensor) -> Tensor:
    """log softmax in float32; what no one can draw (a missing option) gets a finite number whose probability is 0."""
    return logits.float().log_softmax(-1).clamp_min(-1e4)
