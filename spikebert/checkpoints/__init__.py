"""The checkpoints shipped with the package, one folder each in Hugging Face form; `spikebert.checkpoint` reads them."""
