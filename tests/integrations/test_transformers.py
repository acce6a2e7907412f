import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from pruning import METHODS, density, masked, masked_layers
from pruning.integrations.transformers import PruningCallback

pytestmark = pytest.mark.slow


def bert():
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=32, max_position_embeddings=8, num_labels=2, pad_token_id=None)
    return masked(BertForSequenceClassification(config), exclude=["*embeddings*"])


def data(seed, count):
    """Tell whether the first word is of the first ten."""
    x = torch.randint(20, (count, 6), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": words, "labels": int(words[0] < 10)} for words in x]


def accuracy(prediction):
    return {"accuracy": np.mean(prediction.predictions.argmax(1) == prediction.label_ids)}


def train(folder, method, epochs, resume=None, **settings):
    callback = PruningCallback(0.85, **{"method": METHODS[method], "budget": 32} | settings)
    arguments = TrainingArguments(
        folder,
        num_train_epochs=epochs,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        per_device_train_batch_size=32,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(
        bert(),
        arguments,
        train_dataset=data(0, 128),
        eval_dataset=data(1, 128),
        compute_metrics=accuracy,
        callbacks=[callback],
    )
    trainer.train(resume_from_checkpoint=resume)
    return callback, trainer


def test_the_trainer_prunes_stops_and_goes_on_from_a_checkpoint(tmp_path):
    callback, trainer = train(tmp_path / "whole", "rigl", 100)
    events = callback.control.events
    assert callback.control.finished and trainer.state.epoch == len(events) <= 8
    assert [event.iteration for event in events] == [4 * number for number in range(1, len(events) + 1)]
    network = callback.delivered().eval()
    assert density(network) == callback.control.best["density"] < 1
    assert all(not layer.weight[~layer.mask].any() for layer in masked_layers(network).values())
    tests = data(1, 128)
    with torch.no_grad():
        answers = network(torch.stack([each["input_ids"] for each in tests])).logits.argmax(1)
    right = [int(answer) == each["labels"] for answer, each in zip(answers, tests)]
    assert sum(right) / 128 == callback.control.best["accuracy"] >= 0.85
    count = len(events)
    trainer.evaluate()  # after the training
    assert len(callback.control.events) == count

    train(tmp_path / "half", "rigl", 3)
    resumed, _ = train(tmp_path / "half", "rigl", 100, resume=True)
    assert resumed.control.events == events


def test_what_cannot_be_is_said(tmp_path):
    with pytest.raises(RuntimeError, match=r"call delivered\(\) after trainer.train\(\)"):
        PruningCallback(0.85).delivered()
    with pytest.raises(
        ValueError, match=r"compute_metrics gives no 'eval_f1', but \['epoch', 'eval_accuracy', 'eval_loss'"
    ):
        train(tmp_path, "iterative", 1, metric="eval_f1")
