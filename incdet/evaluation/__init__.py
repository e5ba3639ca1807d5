"""What a detector found, scored: VOC and COCO average precision, incremental metrics, prediction and result files."""
