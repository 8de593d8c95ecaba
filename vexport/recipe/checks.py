"""What is wrong between fields of a recipe that are right on their own."""

from __future__ import annotations

from vexport.recipe.sections import Recipe

Location = tuple[str, ...]
Finding = tuple[Location, str]
# Networks that are trained for the sake of comparison; model/ablation.py builds them.
ABLATION_ONLY = ("alexnet", "resnet50")


def check_together(recipe: Recipe) -> list[Finding]:
    """All findings of a training recipe."""
    findings: list[Finding] = []
    decay_epochs = recipe.deep_training.decay_epochs
    if recipe.qat is not None:
        findings += _check_qat(recipe)
    elif decay_epochs > recipe.epochs - 1:
        message = f"{decay_epochs:g} leaves no epoch of {recipe.epochs} at slope 1, where the network can be merged"
        findings.append((("deep_training", "decay_epochs"), message))
    if is_ablation(recipe):
        findings += _check_ablation(recipe)
    if recipe.network.init != "published":
        findings += _check_init(recipe)
    if recipe.schedule.warmup_epochs >= recipe.epochs:
        message = f"{recipe.schedule.warmup_epochs:g} should be less than the {recipe.epochs} epochs"
        findings.append((("schedule", "warmup_epochs"), message))
    if recipe.schedule.min_lr >= recipe.optimizer.lr:
        message = f"{recipe.schedule.min_lr:g} should be less than optimizer.lr, {recipe.optimizer.lr:g}"
        findings.append((("schedule", "min_lr"), message))
    micro, batch = recipe.compute.micro_batch, recipe.batch_size
    if micro is not None and batch > micro and batch % micro:
        message = f"batch_size {batch} should be a multiple of {micro}"
        findings.append((("compute", "micro_batch"), message))
    if recipe.data.name == "images":
        mixes = recipe.data.augment.mixup > 0 or recipe.data.augment.cutmix > 0
        together = min(micro or batch, batch)
        if mixes and together % 2:
            message = f"{together} should be even: mixup and cutmix pair images"
            findings.append((("compute", "micro_batch") if micro else ("batch_size",), message))
        for field in ("scale", "ratio"):
            low, high = getattr(recipe.data.augment, field)
            if low > high:
                findings.append((("data", "augment", field), f"{low:g} should not be above {high:g}"))
    return findings


def is_ablation(recipe: Recipe) -> bool:
    """Whether a recipe's network is one of the ablations': something is left out or added, or it is no VanillaNet."""
    network = recipe.network
    return network.techniques != "both" or network.shortcut != "none" or network.model in ABLATION_ONLY


def _check_ablation(recipe: Recipe) -> list[Finding]:
    """What the networks of the ablations cannot do."""
    message = "should be null: the networks of ablations start afresh"
    findings: list[Finding] = []
    if recipe.network.init_from is not None:
        findings.append((("network", "init_from"), message))
    if recipe.qat is not None:
        findings.append((("qat",), message))
    if recipe.optimizer.layer_decay is not None:
        findings.append(
            (("optimizer", "layer_decay"), "should be null: the networks of ablations have no layer groups")
        )
    if recipe.network.shortcut != "none" and recipe.network.model in ABLATION_ONLY:
        findings.append((("network", "shortcut"), f"should be none: {recipe.network.model} has no stages to go around"))
    return findings


def _check_init(recipe: Recipe) -> list[Finding]:
    """Where the first weights are not drawn, or not by us."""
    network = recipe.network
    if network.model in ABLATION_ONLY:
        reason = f"{network.model} is drawn as its library draws it"
    elif network.init_from is not None:
        reason = "the weights are those of network.init_from"
    elif recipe.qat is not None:
        reason = "the weights are those of qat.start_from"
    else:
        return []
    return [(("network", "init"), f"should be published: {reason}")]


def _check_qat(recipe: Recipe) -> list[Finding]:
    """What quantisation-aware training cannot do."""
    findings: list[Finding] = []
    if recipe.deep_training.decay_epochs != 0:
        message = "should be 0 with qat: the deployed form has no slope"
        findings.append((("deep_training", "decay_epochs"), message))
    if recipe.network.init_from is not None:
        findings.append((("network", "init_from"), "should be null with qat, which starts from qat.start_from"))
    if recipe.compute.precision != "fp32":
        message = f"{recipe.compute.precision} should be fp32 with qat: steps of INT8 would be rounded once more"
        findings.append((("compute", "precision"), message))
    return findings
