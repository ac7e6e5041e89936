"""The data dictionary: the unit and the meaning of every column of every table.

A name that means the same everywhere has one entry. Where a table means something else by it, the entry ``table.name``
counts there. The tables are ``cells`` and ``runs``, which ``load`` returns of the tasks ``time`` and ``train``, and the
CSV files of a run's folder.
"""

from __future__ import annotations

from typing import NamedTuple


class Column(NamedTuple):
    """What a column holds."""

    unit: str  # empty where it has none
    meaning: str


AXES = {
    "optimizer": Column("", "the optimizer's file, with what was changed in it: `kfac[update.lr=0.1]`"),
    "model": Column("", "the model's file, or your own class, with what was changed in it"),
    "data": Column("", "the data's file, or your own loader, with what was changed in it"),
    "dim": Column("", "width d of every layer, and of the data unless data.dim says otherwise"),
    "batch": Column("rows", "rows B of a step; of a language model its tokens, rows × context"),
    "depth": Column("", "affine layers L; blocks of a transformer, transforms of a masked flow, convolutions"),
    "dtype": Column("", "number type; tf32 is float32 whose products round their factors"),
    "device": Column("", "cpu or cuda"),
    "threads": Column("", "threads of the CPU"),
    "seed": Column("", "of data and initial weights; each seed is a process of its own"),
    "machine": Column("", "the GPU, else the CPU and its cores"),
    "status": Column("", "ok, or how it ended: out_of_memory, diverged, too_slow, wrong_gradient, killed, failed"),
    "times.status": Column("", "every status among the seeds"),
    "reason": Column("", "why it did not end ok; in `times` every reason among the seeds"),
    "identity": Column("", "hash of all that the figures depend on; the record's name"),
    "task": Column("", "time or train"),
}

STEP = {
    "step_ms": Column("ms", "a step, amortised over its period: median over the blocks of a process"),
    "times.step_ms": Column("ms", "a step, amortised over its period: geometric mean over seeds"),
    "runs.step_ms": Column("ms", "seconds of steps divided by steps, without loading and evaluating"),
    "training.step_ms": Column("ms", "seconds of steps divided by steps: median over seeds"),
    "targets.step_ms": Column("ms", "seconds of steps divided by steps: median over seeds"),
    "step_ms_low": Column("ms", "lower end of the 95 % interval of step_ms, over processes"),
    "step_ms_high": Column("ms", "upper end of the 95 % interval of step_ms, over processes"),
    "limit_ms": Column(
        "ms", "the limit: the model's unavoidable matrix products, timed in the same loop; NaN if unknown"
    ),
    "ratio": Column(
        "limits", "step / limit, of blocks that follow each other: 1 is products alone; NaN if clearly less"
    ),
    "ratio_low": Column("limits", "lower end of the 95 % interval of ratio, over the blocks of this process"),
    "ratio_high": Column("limits", "upper end of the 95 % interval of ratio, over the blocks of this process"),
    "times.ratio_low": Column("limits", "lower end of the 95 % interval of ratio, over processes"),
    "times.ratio_high": Column("limits", "upper end of the 95 % interval of ratio, over processes"),
    "cheap_ms": Column("ms", "the cheapest step of a period"),
    "peak_ms": Column("ms", "the dearest step of a period, as one with an inverse; a time, where peak_mib is memory"),
    "first_step_ms": Column("ms", "the very first step, with all that is set up or compiled then"),
    "period": Column("steps", "after how many the work repeats"),
    "composed": Column(
        "", "whether the period is too long to be timed whole: step_ms is put together from traced steps"
    ),
    "blocks": Column("", "blocks of steps that were timed, each followed by one of the limit"),
    "stopped_by": Column("", "what ended the timing (precision or time_limit), or the training"),
    "contended": Column(
        "",
        "whether other processes used the machine meanwhile: in no fit and in no verdict; asked of training, of GPUs,"
        " and of the wall clock, since CPU time does not suffer",
    ),
    "times.contended": Column(
        "seeds", "how many were measured while other processes used the machine; left out if any is not"
    ),
    "launch_bound": Column(
        "",
        "whether the device waits for its host for over a quarter of a step (CUDA): in no fit; empty where not known",
    ),
    "disturbed": Column("", "whether no seed was measured undisturbed, so that the figures are of disturbed ones"),
    "phases_ms": Column("ms", "a dict: each phase of a step, amortised over its period"),
    "profile": Column("", "a list of the step's operations, where timing.profile=true; as `operations.csv`"),
    "gflop_per_s": Column("GFLOP/s", "flops / step_ms"),
    "flops": Column("FLOP", "of a step, counted by the shapes of its operations: the mean over a period"),
    "limit_flops": Column("FLOP", "of the limit"),
    "operations": Column("", "operations that a step dispatches: the mean over a period"),
    "synchronisations": Column("", "times a step makes the host wait for the device: the mean over a period"),
    "uncounted": Column(
        "", "operations of which it is not known how their work grows, or how much it is; empty where all are known"
    ),
    "peak_mib": Column(
        "MiB", "peak memory of a step, above what was there before; not to be taken for peak_ms, a time"
    ),
    "energy_j": Column("J", "of a step; only where a GPU has a counter"),
    "log_det": Column(
        "", "how it comes by the log-determinant's gradient: exact, stale, stochastic, biased, restricted"
    ),
    "cosine": Column("", "between what the direction writes and the exact gradient, at a period's end; 1 is the same"),
}

WORK = {
    "clock": Column("", "by which steps are timed: cpu, the process's CPU time; wall; or cuda"),
    "graphs": Column(
        "", "pieces that torch.compile has cut the step into, the fewer the better; where it was compiled"
    ),
    "repeats": Column("", "whether the work repeats after a period, as far as it was watched"),
    "looks": Column("", "how often its run asked whether enough seeds are there; a factor's error is spent over them"),
    "turns": Column("", "cells of the same value were measured in turns: their blocks of one number are of one round"),
    "round_ms": Column("ms", "a list: a step in each block, in order"),
    "shares": Column(
        "",
        "a dict: share of the step, 0 … 1, in operations whose work grows as d^order; 0 holds what does not grow and is"
        " no operation, -1 what is of unknown order",
    ),
    "order_flops": Column("FLOP", "a dict: flops by order"),
    "cubic_operations": Column("", "operations of order 3 and above"),
    "inexact": Column("", "operations whose work grows by no whole power of d"),
    "work": Column("", "a list of the step's operations: shapes, calls, order and milliseconds of each"),
    "order": Column("", "k of work that grows as d^k; 0 is what does not grow and is no operation, -1 is not known"),
    "share": Column("", "of the step, 0 … 1, spent in work of that order: the mean over processes"),
}

CUBIC = {
    "processes": Column("", "how many the cubic share is the mean of"),
    "cubic.verdict": Column("", "what that makes of the step at this dim"),
}

OVER_SEEDS = {
    "seeds": Column("", "how many there are, failures included"),
    "ok": Column("seeds", "those that the figures are of"),
}

GROWTH = {
    "sizes": Column("", "dims that could be used"),
    "dim_min": Column("", "the smallest of the dims"),
    "dim_max": Column("", "the largest of the dims, at which the verdict is"),
    "cubic_share": Column("", "share of the step, 0 … 1, in work of order 3 and above; exactly 0 where there is none"),
    "scaling.cubic_share": Column("", "the same at dim_max, over processes"),
    "cubic_low": Column("", "lower end of its 95 % interval"),
    "cubic_high": Column("", "upper end of its 95 % interval"),
    "verdict": Column(
        "", "no cubic work, partly cubic (below 25 %), cubic (above), undecided, not counted, or nothing to judge"
    ),
    "half_dim": Column("dim", "from which on half of the step is cubic, interpolated; empty where none was passed"),
    "flop_exponent": Column(
        "", "e where the counted FLOPs grow as d^e, between dim and a second dim nearby; free of noise"
    ),
    "quartic": Column("", "share of the counted FLOPs, 0 … 1, in operations that grow as d⁴ or faster, at dim_max"),
    "fit_share": Column("", "a check of cubic_share: the share by which counted FLOPs explain how times grow with d"),
    "fit_low": Column("", "lower end of its 95 % interval"),
    "fit_high": Column("", "upper end of its 95 % interval"),
    "fit_agrees": Column("", "whether that interval and the one of cubic_share have something in common"),
    "ratio_at_max": Column("limits", "ratio at dim_max"),
    "dim_in_1_ms": Column("", "largest dim measured whose step takes at most 1 ms; never above largest_dim"),
    "dim_in_10_ms": Column("", "largest dim measured whose step takes at most 10 ms; never above largest_dim"),
    "dim_in_100_ms": Column("", "largest dim measured whose step takes at most 100 ms; never above largest_dim"),
    "dim_in_1024_MiB": Column(
        "", "largest dim measured whose step's peak_mib is at most 1024; never above largest_dim"
    ),
    "largest_dim": Column("", "largest dim that was measured at all: the others are capped by it"),
    "from": Column("", "the smaller of two neighbouring dims"),
    "to": Column("", "the larger of two neighbouring dims"),
    "slopes.dim": Column("", "the geometric middle of both"),
    "slope": Column("", "Δ log step_ms / Δ log dim between them: 2 is quadratic, 3 cubic"),
    "slopes.low": Column("", "lower end of the 95 % interval of slope"),
    "slopes.high": Column("", "upper end of the 95 % interval of slope"),
}

FACTORS = {
    "baseline": Column("", "the optimizer that is compared with: layerwise, naive, or the slowest if neither is there"),
    "factor": Column("", "time of the baseline / time of the optimizer: above 1 the optimizer is faster"),
    "factors.low": Column("", "lower end of the 95 % interval of factor"),
    "factors.high": Column("", "upper end of the 95 % interval of factor"),
    "factors.seeds": Column("", "how many both have in common"),
    "rounds": Column("", "in which both were measured, of all seeds; 0 where they took no turns"),
    "factors.verdict": Column("", "faster, slower, equal (the interval lies within 5 % of 1) or undecided"),
}

CROSSOVERS = {
    "faster": Column("", "the optimizer that is faster; of a crossover, above it"),
    "slower": Column("", "the other"),
    "kind": Column(
        "",
        "crossover; none, where one is faster wherever it is told; equal, where they are within 5 %; undecided, where"
        " nothing is decided",
    ),
    "at": Column("dim", "where the one overtakes the other, interpolated; empty unless kind is crossover"),
    "crossovers.low": Column("dim", "the last decided dim below the crossover"),
    "crossovers.high": Column("dim", "the first decided dim above the crossover"),
    "dims": Column("", "how many dims both have"),
    "decided": Column(
        "dims",
        "those where a 95 % interval, over all of the pair's dims, tells the two apart; of kind equal, those where they"
        " are equal",
    ),
    "decided_min": Column("", "the smallest decided dim"),
    "decided_max": Column("", "the largest decided dim"),
    "equal": Column("dims", "those where the two are equal within 5 %"),
    "factor_min": Column("", "time of the slower / time of the faster at the decided dim where they differ least"),
    "factor_max": Column("", "the same where they differ most"),
}

VERSIONS = {
    "before": Column("", "the folder named earlier"),
    "after": Column("", "the folder named later, whose cells are of other code, torch or driver"),
    "before_ms": Column("ms", "a step in the folder named earlier: geometric mean over seeds"),
    "after_ms": Column("ms", "a step in the folder named later: geometric mean over seeds"),
    "times": Column("", "after_ms / before_ms: above 1 the step became slower"),
    "versions.low": Column("", "lower end of the 95 % interval of times, over processes and days"),
    "versions.high": Column("", "upper end of that interval"),
    "limit_times": Column("", "the same of the limit: where it moves as the step does, the step has not changed"),
    "versions.verdict": Column("", "slower, faster, equal (the interval lies within 5 % of 1) or undecided"),
}

OPERATIONS = {
    "operation": Column("", "torch's name of it, or (between operations): Python, and what else the host does"),
    "calls": Column("", "how often a step calls it"),
    "host_share": Column("", "of the step's time, spent by the host in the operation itself, 0 … 1"),
    "device_share": Column("", "of the step's time, spent by the device in it, 0 … 1; only on a GPU"),
}

TRAINING = {
    "trial": Column("", "whether the run served to choose a learning rate; its held-out rows stay unread"),
    "tuned": Column("", "learning rate, and damping where there is one"),
    "budget": Column("", "what the run may take, in steps or in seconds of steps; the earlier ends it"),
    "tuning_trials": Column("", "trials that chose the run's settings, those that diverged too"),
    "tuning_s": Column("s", "of steps, of all those trials together"),
    "step": Column("steps", "done before this point of the curve"),
    "steps": Column("steps", "of training; median over seeds in `training`"),
    "targets.steps": Column("steps", "to the target: median over seeds, infinite where half of them missed it"),
    "seconds": Column("s", "of steps, without loading and evaluating; median over seeds in `training`"),
    "targets.seconds": Column("s", "of steps, to the target: median over seeds, infinite where half of them missed it"),
    "unit": Column("", "of the likelihoods: nats, a row; of a language model nats per byte or per token"),
    "validation_nats": Column("nats a row", "mean log-likelihood of the validation rows; as held_out_nats"),
    "held_out_nats": Column(
        "nats a row",
        "mean log-likelihood of the held-out rows: of data=file in the file's own units, of other data in those that"
        " the model is given; median over seeds in `training`",
    ),
    "held_out_bits": Column(
        "bits a dim",
        "the same as bits per dimension; of photos in the unit of 8-bit pixels; only of rows, not of targets",
    ),
    "caveat": Column(
        "", "why these figures rank nothing, or hardly: what is wrong with the data, named before training"
    ),
    "training.low": Column("nats a row", "the smallest held_out_nats among the seeds"),
    "training.high": Column("nats a row", "the largest held_out_nats among the seeds"),
    "amari": Column(
        "", "Amari distance of the unmixing found to the true one: 0 is perfect, 1 nothing; only of mixtures"
    ),
    "fast_ica_amari": Column("", "the same of FastICA, on the same rows"),
    "halved": Column("", "times a step halved its learning rate to stay within its bound (relative_fused)"),
    "inner_iterations": Column(
        "", "of conjugate gradients, in all steps so far (hessian_free); median over seeds in `training`"
    ),
    "drift_nats": Column(
        "nats", "error of the log-likelihood that a step carries along; the largest seen, in `curves` each"
    ),
    "runs.quadratic": Column(
        "", "of plain SGD on a quadratic without noise: its condition number, lr, momentum, and 1 if that is Nesterov's"
    ),
    "condition": Column("", "condition number κ of the quadratic"),
    "dampings.rate": Column("", "learning rate of the trials"),
    "damping": Column("", "the best of those tried at that rate and batch, by the validation split"),
    "open": Column("", "whether it is the smallest or the largest tried: a better one may lie beyond"),
    "spacing": Column("", "largest factor between neighbouring dampings that were tried"),
    "lr": Column("", "learning rate"),
    "momentum": Column("", "μ, 0 without"),
    "nesterov": Column("", "1 where the gradient is taken ahead, as by Nesterov, else 0"),
    "theory": Column("", "−log of the factor a step by which the distance from the optimum shrinks: its closed form"),
    "quadratic.measured": Column("", "the same by half the slope of log loss through the second half of the steps"),
    "off": Column("", "measured / theory − 1"),
    "rows": Column("rows", "that a Hessian is of, drawn at random from those trained on"),
    "lambda_1": Column("", "largest eigenvalue of that Hessian, by Lanczos"),
    "target": Column("", "what is to be reached: the end of layerwise, or 99 % of the best gain"),
    "nats": Column("nats a row", "held-out log-likelihood of the target"),
    "fastest_s": Column("s", "of steps, to the target: the fastest seed"),
    "slowest_s": Column("s", "of steps, to the target: the slowest seed, infinite where one missed it"),
    "missed": Column("seeds", "those that did not reach the target"),
    "targets.runs": Column("seeds", "those that were trained, tuning's trials left out"),
    "of_baseline": Column("", "seconds / those of layerwise to the same target; below 1 is faster"),
}

COLUMNS = AXES | STEP | WORK | CUBIC | OVER_SEEDS | GROWTH | FACTORS | CROSSOVERS | VERSIONS | OPERATIONS | TRAINING


def key_of(table: str, name: str) -> str:
    """Return the key of a table's column in ``COLUMNS``: ``key_of("slopes", "low")`` is ``slopes.low``.

    Raises:
        KeyError: it has no entry.
    """
    key = next((key for key in (f"{table}.{name}", name) if key in COLUMNS), None)
    if key is None:
        raise KeyError(f"{table}.{name} has no unit and no meaning in stepscale.bench.records.columns")
    return key


def column_of(table: str, name: str) -> Column:
    """Return what a column of a table holds: ``column_of("slopes", "slope").meaning``.

    Raises:
        KeyError: it has no entry.
    """
    return COLUMNS[key_of(table, name)]
