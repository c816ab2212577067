"""Lowering: from a network to a program, the list of operations that one step performs.

The programs are neutral (`fastnn.program`): a backend gives their buffers memory and runs them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from fastnn import records
from fastnn.program import Fields, Op, Program, Ref, transposed
from fastnn.records import Record
from fastnn.stages import Affine, Dropout, Elementwise, Feed, Objective, Stage, Update


@dataclass
class Lowering:
    """Lowers one network; the arguments that are the same for every mode are fields.

    Parameters
    ----------
    stages
        The network.
    rows
        Rows of the batch; `capacity` rows are laid out, so that a shorter last batch finds its padding where the full
        one has it (and the step that consumes `capacity` rows of the caller's arrays).
    pad
        The backend's leading dimension for rows of n elements.
    """

    stages: list[Stage]
    x: Feed
    rows: int
    capacity: int
    pad: Callable[[int], int]
    ops: list[Op] = field(default_factory=list)
    arena: int = 0
    flops: int = 0

    # --- programs -----------------------------------------------------------------------------------------------

    def predict(self) -> Program:
        """Outputs for every row, written to ``out``."""
        last = self._forward(training=False, fused=None)
        units = self.stages[-1].units if self.stages else self.x.cols
        self._add(
            ("output", "write"),
            "rows.scatter",
            records.SCATTER,
            {
                "x": self._ref(last),
                "ld": self.pad(units),
                "out": Ref("out"),
                "rows": self.rows,
                "cols": units,
                "step_rows": self.capacity,
            },
            reads=(last,),
            writes=("out",),
            by_rows=True,
        )
        return self._finish()

    def evaluate(self, objective: Objective, y: Feed | None, weighted: bool) -> Program:
        """Sums of the loss and the metrics."""
        last = self._forward(training=False, fused=objective.fuses)
        self._objective(objective, y, weighted, last, gradient=False)
        self._totals(objective, weighted)
        return self._finish()

    def train(self, objective: Objective, y: Feed | None, weighted: bool, update: Update) -> Program:
        """One optimizer step, and the sums of the loss and the metrics."""
        last = self._forward(training=True, fused=objective.fuses)
        self._objective(objective, y, weighted, last, gradient=True)
        self._backward(objective, update)
        self._totals(objective, weighted)
        return self._finish()

    def _finish(self) -> Program:
        return Program(self.ops, self.arena, self.flops)

    # --- memory and operations ----------------------------------------------------------------------------------

    def _take(self, region: str, elements: int) -> str:
        self._places[region] = self.arena
        self.arena += -(-elements // 64) * 64  # whole cache lines
        return region

    def _ref(self, region: str) -> Ref:
        return Ref("arena", self._places[region])

    def __post_init__(self) -> None:
        self._places: dict[str, int] = {}
        self._outputs: dict[int, str] = {0: "a0"}  # the region that holds each stage's output
        # Regions with many zeros, as a rule: what relu or dropout leave, and the gradients behind them.
        self._holed: set[str] = set()

    def _add(
        self,
        name: tuple[str, str],  # the layer, and what is done
        kernel: str,
        record: Record,
        fields: Fields,
        reads: tuple[str, ...] = (),
        writes: tuple[str, ...] = (),
        by_rows: bool = False,
    ) -> None:
        layer, label = name
        self.ops.append(Op(kernel, record, fields, reads, writes, by_rows, layer=layer, label=label))

    def _gather(self, layer: str, source: str, feed: Feed, region: str) -> str:
        ld = self.pad(feed.cols)
        self._take(region, self.capacity * ld)
        self._add(
            (layer, f"gather {source}"),
            f"rows.gather_{feed.dtype}",
            records.GATHER,
            {
                "x": Ref(source),
                "index": Ref("index"),
                "out": self._ref(region),
                "rows": self.rows,
                "cols": feed.cols,
                "ld": ld,
                "x_row": feed.row,
                "x_col": feed.col,
                "step_rows": self.capacity,
                "scale": feed.scale,
                "offset": feed.offset,
            },
            writes=(region,),
            by_rows=True,
        )
        return region

    def _gemm(
        self,
        name: tuple[str, str],
        epilogue: Op,
        fields: Fields,
        reads: tuple[str, ...],
        batch: str = "m",
        sums: Op | None = None,
    ) -> None:
        sparse = self.x.sparse and reads[0] == "a0" and fields["n"] != 1
        self.flops += 2 * int(fields["m"]) * int(fields["n"]) * int(fields["k"])  # type: ignore[arg-type]
        swapped = fields["n"] == 1
        if swapped:
            # A column lies in memory without gaps, as a row, and so it is computed: C' = B' A'.
            fields = transposed(fields)
            batch = batch and "n"
            if epilogue.record is records.FORWARD:
                epilogue.fields["one_bias"] = 1
        writes = epilogue.writes + (sums.writes if sums else ())
        op = Op("gemm.gemm", records.GEMM, fields, reads=reads + epilogue.reads, writes=writes, batch=batch)
        op.epilogue, op.sums = epilogue, sums
        op.layer, op.label = name
        op.sparse, op.swapped = sparse, swapped
        op.may_be_sparse = reads[0] in self._holed and not swapped
        op.gradient_may_be_sparse = reads[1] in self._holed
        self.ops.append(op)

    # --- forward ------------------------------------------------------------------------------------------------

    def _forward(self, *, training: bool, fused: str | None) -> str:
        region = self._gather("input", "x", self.x, "a0")
        for i, stage in enumerate(self.stages, 1):
            activation = getattr(stage, "activation", None)
            if i == len(self.stages) and fused is not None:
                activation = "linear"  # the loss kernel applies it
            if isinstance(stage, Affine):
                region = self._affine(stage, region, f"a{i}", activation or "linear")
            elif isinstance(stage, Dropout):
                if training:
                    target = self._take(f"a{i}", self.capacity * self.pad(stage.units))
                    region = self._dropout("forward", stage, region, target)
            elif stage.activation != "linear":
                # A fused loss overwrites the outputs, and the stage before still needs its own: hence the copy
                # ("linear").
                target = self._take(f"a{i}", self.capacity * self.pad(stage.units))
                name = (stage.name, "forward")
                region = self._activate(name, activation or "linear", stage.alpha, stage.units, region, target)
            if activation == "relu":
                self._holed.add(region)
            self._outputs[i] = region
        return region

    def _affine(self, stage: Affine, region: str, target: str, activation: str) -> str:
        ld = stage.ld
        self._take(target, self.capacity * ld)
        whole = activation == "softmax"  # needs the whole row, so it follows the product
        epilogue = Op(
            f"activations.{'linear' if whole else activation}_forward",
            records.FORWARD,
            {
                "c": self._ref(target),
                "c_row": ld,
                "c_col": 1,
                "bias": 0 if stage.bias is None else Ref("params", stage.bias),
                "alpha": stage.alpha,
            },
            reads=(f"bias {stage.name}",),
            writes=(target,),
        )
        self._gemm(
            (stage.name, "forward"),
            epilogue,
            {
                "a": self._ref(region),
                "a_row": self._ld_before(stage),
                "a_col": 1,
                "b": Ref("params", stage.kernel),
                "b_row": ld,
                "b_col": 1,
                "m": self.rows,
                "n": self._whole(stage.units),
                "k": stage.inputs,
            },
            reads=(region, f"kernel {stage.name}"),
        )
        if whole:
            self._activate((stage.name, "softmax"), "softmax", 0.0, stage.units, target, target)
        return target

    def _whole(self, n: int) -> int:
        """Columns of a padded row that a product computes: whole vectors, so that no tile is ragged."""
        return 1 if n == 1 else -(-n // self.lanes) * self.lanes

    @property
    def lanes(self) -> int:
        """Elements that rows are padded to a multiple of."""
        return self.pad(2)

    def _ld_before(self, stage: Affine) -> int:
        return self.pad(stage.inputs)

    def _activate(
        self, name: tuple[str, str], activation: str, alpha: float, units: int, region: str, target: str
    ) -> str:
        rows_kernel = activation == "softmax"
        ld = self.pad(units)
        self._add(
            name,
            "activations.softmax_rows" if rows_kernel else f"activations.{activation}_map",
            records.MAP,
            {
                "x": self._ref(region),
                "y": self._ref(target),
                "n": self.rows * ld,
                "rows": self.rows,
                "cols": units,
                "ld": ld,
                "alpha": alpha,
            },
            reads=(region,),
            writes=(target,),
            by_rows=rows_kernel,
        )
        return target

    def _dropout(self, label: str, stage: Dropout, region: str, target: str) -> str:
        keep = 1.0 - stage.rate
        self._holed.add(target)
        self._add(
            (stage.name, label),
            "dropout.dropout",
            records.DROPOUT,
            {
                "x": self._ref(region),
                "y": self._ref(target),
                "rows": self.rows,
                "cols": stage.units,
                "ld": self.pad(stage.units),
                "keep": keep,
                "threshold": min(round(keep * 2**32), 2**32),
                "layer": stage.index,
            },
            reads=(region,),
            writes=(target,),
            by_rows=True,
        )
        return target

    # --- loss and metrics ---------------------------------------------------------------------------------------

    def _objective(self, objective: Objective, y: Feed | None, weighted: bool, last: str, *, gradient: bool) -> None:
        units = self.stages[-1].units if self.stages else self.x.cols
        ld = self.pad(units)
        target: Fields = {}
        if y is None:
            self._take("labels", self.capacity * 2)  # int64 in an arena of float32
            self._add(
                ("loss", "gather y"),
                "rows.gather_labels",
                records.LABELS,
                {
                    "labels": Ref("y"),
                    "index": Ref("index"),
                    "out": self._ref("labels"),
                    "rows": self.rows,
                    "step_rows": self.capacity,
                },
                writes=("labels",),
                by_rows=True,
            )
            target["label"] = self._ref("labels")
        else:
            self._gather("loss", "y", y, "targets")
            target["target"] = self._ref("targets")
            target["target_ld"] = self.pad(y.cols)
        if weighted:
            # One column, packed densely: a vector of weights.
            self._take("weights", self.capacity)
            self._add(
                ("loss", "gather weights"),
                "rows.gather_float64",
                records.GATHER,
                {
                    "x": Ref("weight"),
                    "index": Ref("index"),
                    "out": self._ref("weights"),
                    "rows": self.rows,
                    "cols": 1,
                    "ld": 1,
                    "x_row": 1,
                    "x_col": 1,
                    "step_rows": self.capacity,
                    "scale": 1.0,
                },
                writes=("weights",),
                by_rows=True,
            )
        shape: Fields = {"z": self._ref(last), "rows": self.rows, "cols": units, "ld": ld}
        reads = (last, "labels", "targets", "weights")
        if objective.loss is not None:
            self._take("value 0", self.capacity)
            if gradient:
                self._take(f"d{len(self.stages)}", self.capacity * ld)
            self._add(
                ("loss", "loss and gradient" if gradient else "loss"),
                f"losses.{objective.loss}",
                records.LOSS,
                {
                    **shape,
                    **target,
                    "p": self._ref(last),
                    "weight": self._ref("weights") if weighted else 0,
                    "grad": self._ref(f"d{len(self.stages)}") if gradient else 0,
                    "value": self._ref("value 0"),
                    "scale": 1.0 / self.rows,
                },
                reads=reads,
                writes=(last, f"d{len(self.stages)}", "value 0"),
                by_rows=True,
            )
        for i, (metric, threshold) in enumerate(objective.metrics, 1):
            self._take(f"value {i}", self.capacity)
            self._add(
                ("metrics", metric),
                f"metrics.{metric}",
                records.METRIC,
                {**shape, **target, "value": self._ref(f"value {i}"), "threshold": threshold},
                reads=reads,
                writes=(f"value {i}",),
                by_rows=True,
            )

    def _totals(self, objective: Objective, weighted: bool) -> None:
        for i in range(len(objective.metrics) + 1):
            self._add(
                ("metrics", f"sum of {objective.metrics[i - 1][0]}") if i else ("loss", "sum"),
                "rows.total",
                records.TOTAL,
                {
                    "value": self._ref(f"value {i}"),
                    "weight": self._ref("weights") if weighted and i == 0 else 0,
                    "rows": self.rows,
                    "totals": Ref("totals"),
                    "slot": i,
                },
                reads=(f"value {i}", "weights"),
                writes=(f"total {i}",),
            )

    # --- backward -----------------------------------------------------------------------------------------------

    def _backward(self, objective: Objective, update: Update) -> None:
        """From the gradient of the outputs to updated parameters, last stage first.

        ``d<i>`` holds the gradient of stage i's output, then, in place, of what its activation was applied to.
        """
        first = next((i for i, s in enumerate(self.stages, 1) if isinstance(s, Affine)), None)
        if first is None:
            return
        differentiated = objective.fuses is not None  # whether d<i> already includes the activation's slope
        # All gradients before all updates: where the former are divided by rows, no thread waits between them.
        updates: list[tuple[Affine, int, str]] = []
        gradient = f"d{len(self.stages)}"
        for i in range(len(self.stages), first - 1, -1):
            stage = self.stages[i - 1]
            if isinstance(stage, Dropout):
                self._dropout("gradient", stage, gradient, gradient)
            elif not differentiated:
                self._differentiate(stage, i, gradient)
            if isinstance(stage, Affine):
                before = gradient
                fused = False
                if i > first:
                    gradient, fused = self._input_gradient(stage, i, gradient)
                updates.append((stage, i, before))
                differentiated = fused
            else:
                differentiated = False
        for stage, i, before in updates:
            self._update(stage, i, before, update)

    def _differentiate(self, stage: Affine | Elementwise, i: int, gradient: str) -> None:
        """D = d * f'(a), in place."""
        if stage.activation == "linear":
            return
        if stage.activation == "relu":
            self._holed.add(gradient)
        output = self._outputs[i]
        self._add(
            (stage.name, "activation gradient"),
            f"activations.{stage.activation}_gradient",
            records.MAP,
            {
                "x": self._ref(output),
                "g": self._ref(gradient),
                "y": self._ref(gradient),
                "rows": self.rows,
                "cols": stage.units,
                "ld": self.pad(stage.units),
                "alpha": stage.alpha,
            },
            reads=(output, gradient),
            writes=(gradient,),
            by_rows=True,
        )

    def _input_gradient(self, stage: Affine, i: int, gradient: str) -> tuple[str, bool]:
        """DA = D W', times the slope of the activation before where that is a plain function of its output."""
        ld = self.pad(stage.inputs)
        target = self._take(f"d{i - 1}", self.capacity * ld)
        previous = self.stages[i - 2]
        activation = getattr(previous, "activation", "linear")
        fused = isinstance(previous, Affine) and activation != "softmax"
        if fused and activation == "relu":
            self._holed.add(target)
        output = self._outputs[i - 1]
        if stage.units == 1 and stage.inputs > 1:  # rows of one number are not padded
            self._outer(stage, activation if fused else "linear", previous, gradient, output, target)
            return target, fused
        if fused and activation != "linear":
            epilogue = Op(
                f"activations.{activation}_backward",
                records.BACKWARD,
                {"c": self._ref(target), "c_row": ld, "c_col": 1, "y": self._ref(output), "alpha": previous.alpha},  # type: ignore[union-attr]
                reads=(output,),
                writes=(target,),
            )
        else:
            epilogue = Op(
                "activations.linear_forward",
                records.FORWARD,
                {"c": self._ref(target), "c_row": ld, "c_col": 1, "bias": 0},
                writes=(target,),
            )
        self._gemm(
            (stage.name, "input gradient"),
            epilogue,
            {
                "a": self._ref(gradient),
                "a_row": stage.ld,
                "a_col": 1,
                "b": Ref("params", stage.kernel),
                "b_row": 1,
                "b_col": stage.ld,
                "m": self.rows,
                "n": stage.inputs,
                "k": stage.units,
            },
            reads=(gradient, f"kernel {stage.name}"),
        )
        return target, fused

    def _outer(self, stage: Affine, activation: str, previous: Stage, gradient: str, output: str, target: str) -> None:
        """The input gradient of a single unit: a column times a row, times the slope of the activation before."""
        linear = activation == "linear"  # has no use for outputs
        self.flops += 2 * self.rows * stage.inputs
        self._add(
            (stage.name, "input gradient"),
            f"activations.{activation}_outer",
            records.MAP,
            {
                "x": self._ref(target if linear else output),
                "g": self._ref(gradient),
                "row": Ref("params", stage.kernel),
                "y": self._ref(target),
                "rows": self.rows,
                "cols": stage.inputs,
                "ld": self.pad(stage.inputs),
                "alpha": 0.0 if linear else previous.alpha,  # type: ignore[union-attr]
            },
            reads=(gradient, f"kernel {stage.name}", *(() if linear else (output,))),
            writes=(target,),
            by_rows=True,
        )

    def _update(self, stage: Affine, i: int, gradient: str, update: Update) -> None:
        """W and b by dW = A' D and db = 1' D, which never reach memory."""
        inputs, units = self._outputs[i - 1], self._whole(stage.units)

        def epilogue(what: str, at: int, n: int) -> Op:
            return Op(
                f"optimizers.{update.kernel}",
                records.UPDATE,
                {
                    "p": Ref("params", at),
                    "p_row": stage.ld,
                    "n": n,
                    "s0": Ref("state0", at) if update.states > 0 else 0,
                    "s1": Ref("state1", at) if update.states > 1 else 0,
                    **dict(update.constants),
                },
                writes=(f"{what} {stage.name}",),
            )

        sums = None if stage.bias is None else epilogue("bias", stage.bias, units)
        self._gemm(
            (stage.name, f"{'weight gradient' if sums is None else 'gradients'} + {update.kernel}"),
            epilogue("kernel", stage.kernel, stage.inputs * units),
            {
                "a": self._ref(inputs),
                "a_row": 1,
                "a_col": self._ld_before(stage),
                "b": self._ref(gradient),
                "b_row": stage.ld,
                "b_col": 1,
                "m": stage.inputs,
                "n": units,
                "k": self.rows,
            },
            reads=(inputs, gradient),
            batch="",
            sums=sums,
        )
