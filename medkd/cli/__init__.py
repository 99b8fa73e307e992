"""The commands: one module each, which parses, calls one function of :mod:`medkd.api` or its kind, and prints."""

COMMANDS = {
    "convert": ("convert", "bring a download into the raw layout, and check it"),
    "plan_and_preprocess": ("plan_and_preprocess", "check every case, measure the data set, plan, preprocess"),
    "train": ("train", "train a network alone, and score it"),
    "train_distill": ("train_distill", "train a student with a teacher, and score it"),
    "tune": ("tune", "search parameters of a method on inner folds"),
    "score_teacher": ("score_teacher", "score a teacher that was trained elsewhere, for the report"),
    "compress": ("compress", "small students of one teacher, and which may replace it"),
    "predict": ("predict", "label maps for scans, boxes for radiographs"),
    "export": ("export", "a trained model as a folder or file that runs without torch"),
    "serve": ("serve", "an exported model behind HTTP, with an upload page"),
    "evaluate": ("evaluate", "score a folder of predictions"),
    "cross_validate": ("cross_validate", "put the folds of a run together"),
    "best_configuration": ("best_configuration", "which configuration predicts best, alone or with another"),
    "report": ("report", "one page: teacher, student alone and distilled student side by side"),
    "reproduce": ("reproduce", "all runs of a recipe, resumable, and their table"),
    "list": ("list_entries", "networks, methods, data sets, runs, formats"),
    "demo": ("demo", "the whole way on a phantom, or on your own folder"),
}
"""Command, without ``medkd_`` → its module in this package, and what it does; setup.py installs these."""
