"""The loss of several tasks in float64, answer by answer."""

import math

import numpy as np


def task_loss(outputs, targets, tasks, label_smoothing=0.0):
    """Return the loss; tasks: (kind, outputs, mean, std, weight) of each, in order."""
    total, first, column = 0.0, 0, 0
    for kind, size, mean, std, weight in tasks:
        terms = []
        for z, t in zip(outputs[:, first : first + size].astype(np.float64), targets, strict=True):
            if math.isnan(t[column]):
                continue
            if kind == "classes":
                log_p = z - z.max() - math.log(sum(math.exp(v - z.max()) for v in z))
                own = -log_p[int(t[column])]
                terms.append((1 - label_smoothing) * own - label_smoothing * log_p.mean())
            elif kind == "labels":
                there = t[column : column + size]
                # -log sigmoid(z) = log(1 + exp(-z)), and -log(1 - sigmoid(z)) = log(1 + exp(z))
                each = [
                    np.logaddexp(0, -v) if yes else np.logaddexp(0, v)
                    for v, yes in zip(z, there, strict=True)
                ]
                terms.append(sum(each) / size)
            else:
                terms.append((z[0] / 3 - (t[column] - mean) / std) ** 2)
        if terms:
            total += weight * sum(terms) / len(terms)
        first += size
        column += size if kind == "labels" else 1
    return total
