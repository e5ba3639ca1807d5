"""Plain fine-tuning: the lower bound. It trains on what the task shows and does nothing else."""

from incdet.methods.base import Method


class Finetune(Method):
    """Fine-tuning is the absence of every remedy, so it stands alone."""

    combines = False
    works_on = ("detection", "classification", "multi_label")
