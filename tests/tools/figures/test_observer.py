"""What a network makes of images: its own probabilities and features, counted without loss."""

from pathlib import Path

import numpy as np
import torch

from pipeline.manifest import open_dataset
from tools.figures.observer import (
    ClassScore,
    Mistake,
    Observer,
    Tally,
    best_classes,
    spread_over_classes,
)
from tools.figures.stored_images import Images, StoredImages
from tools.prediction import Predictor
from trainer.checkpoint import load_checkpoint

CPU = torch.device("cpu")


def test_probabilities_are_the_predictor_s_and_features_give_them_back(
    shard_folder: Path, kriz2012_folder: Path
) -> None:
    checkpoint = load_checkpoint(kriz2012_folder / "last.safetensors")
    images = StoredImages(open_dataset(shard_folder), "val")
    (found,) = images.batches(np.arange(6))
    observer = Observer(checkpoint, CPU)
    seen = observer.see(found.pixels)
    expected = Predictor(checkpoint, CPU).probabilities(list(found.pixels))
    np.testing.assert_array_equal(seen.probabilities, expected.numpy())
    assert seen.features.shape == (6, observer.model.hidden[1])
    logits = observer.model.fc8(torch.from_numpy(seen.features))
    again = torch.softmax(logits, 1).detach().numpy()
    np.testing.assert_allclose(again, seen.probabilities, atol=1e-6)
    images.close()


def tallied(probabilities: np.ndarray, labels: np.ndarray, batch: int) -> Tally:
    tally = Tally()
    for first in range(0, len(labels), batch):
        part = slice(first, first + batch)
        rows = np.arange(len(labels))[part]
        images = Images(rows, labels[part], np.empty((len(rows), 0), np.uint8))
        tally.add(images, probabilities[part])
    return tally


def test_a_tally_counts_what_plain_loops_count() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(9, 0.4), 200).astype(np.float32)
    labels = rng.integers(0, 9, 200).astype(np.int32)
    tally = tallied(probabilities, labels, 32)
    order = [sorted(range(9), key=lambda c: (-row[c], c)) for row in probabilities]
    wrong = [i for i in range(200) if order[i][0] != labels[i]]
    assert tally.num_images == 200 and tally.num_top1 == len(wrong)
    assert tally.num_top5 == sum(labels[i] not in order[i][:5] for i in range(200))
    surest = sorted(wrong, key=lambda i: (-probabilities[i, order[i][0]], i))[:12]
    assert [mistake.row for mistake in tally.mistakes()] == surest
    first = surest[0]
    assert tally.mistakes()[0] == Mistake(
        float(probabilities[first, order[first][0]]), first, int(labels[first]), order[first][0]
    )
    scores = {score.label: score for score in tally.worst_classes(9)}
    for label in range(9):
        own = [i for i in wrong if labels[i] == label]
        assert scores[label].num_errors == len(own)
        assert scores[label].num_images == int((labels == label).sum())
        taken = [order[i][0] for i in own]
        assert scores[label].num_taken == max(taken.count(c) for c in taken)
        favourite = scores[label].taken_for
        assert favourite is not None and taken.count(favourite) == scores[label].num_taken


def test_a_class_missed_often_comes_before_one_missed_once() -> None:
    def score(errors: int, images: int) -> float:
        return ClassScore(
            label=0, num_images=images, num_errors=errors, taken_for=1, num_taken=1
        ).sure_error

    assert score(8, 10) > score(1, 1) > score(1, 4)
    assert 0 < score(1, 50) < 1 / 50 and score(50, 50) < 1


def test_without_a_mistake_there_is_no_worst_class() -> None:
    labels = np.array([2, 1], np.int32)
    tally = tallied(np.eye(3, dtype=np.float32)[labels], labels, 2)
    assert (tally.num_top1, tally.worst_classes(5), tally.mistakes()) == (0, [], [])


def test_best_classes_of_equal_probability_come_in_order() -> None:
    assert best_classes(np.array([[0.25, 0.25, 0.5]], np.float32)).tolist() == [[2, 0, 1]]


def test_rows_are_picked_from_as_many_classes_as_there_are() -> None:
    rows, labels = [7, 3, 9, 4, 5, 1], [0, 0, 1, 0, 2, 1]
    assert spread_over_classes(rows, labels, 3) == [7, 9, 5]
    assert spread_over_classes(rows, labels, 5) == [7, 9, 5, 3, 1]
    assert sorted(spread_over_classes(rows, labels, 99)) == sorted(rows)
