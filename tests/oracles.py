"""Loop oracles: each loss written out in scalar loops, as the formula reads, in double precision.

They share no code with medvl and vectorise nothing. Values are torch scalars so that their gradients
are oracles too.
"""

from __future__ import annotations

import torch


def dot(a, b):
    total = torch.zeros((), dtype=torch.float64)
    for x, y in zip(a, b, strict=True):
        total = total + x * y
    return total


def normalised(vector):
    length = dot(vector, vector).sqrt()
    return [x / length for x in vector]


def log_softmax_at(logits, target):
    """log(e^z_target / Σ e^z), shifted by the largest logit."""
    largest = max(float(z.detach()) for z in logits)
    total = torch.zeros((), dtype=torch.float64)
    for z in logits:
        total = total + torch.exp(z - largest)
    return logits[target] - largest - torch.log(total)


def softmax(logits):
    return [torch.exp(log_softmax_at(logits, k)) for k in range(len(logits))]


def targets_of(positives, i, mode):
    """The columns that take part in row i, and the target on each, for METHODS §4's four modes."""
    columns = range(len(positives))
    if mode == "none":
        return {j: float(i == j) for j in columns}
    if mode == "mask":
        return {j: float(i == j) for j in columns if i == j or positives[j] < 1}
    if mode == "multi":
        equal = [j for j in columns if j == i or positives[j] == 1]
        return {j: (1 / len(equal) if j in equal else 0.0) for j in columns}
    row = [1.0 if i == j else float(positives[j]) for j in columns]
    return {j: row[j] / sum(row) for j in columns}


def row_cross_entropy(logits, target):
    kept = list(target)
    values = [logits[j] for j in kept]
    total = torch.zeros((), dtype=torch.float64)
    for place, j in enumerate(kept):
        total = total - target[j] * log_softmax_at(values, place)
    return total


def clip_loss(images, texts, positives, scale, mode="none"):
    """½[mean_i H(image i over texts) + mean_j H(text j over images)]."""
    v = [normalised(list(x)) for x in images]
    t = [normalised(list(x)) for x in texts]
    batch = len(v)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(batch):
        over_texts = [scale * dot(v[i], t[j]) for j in range(batch)]
        over_images = [scale * dot(v[j], t[i]) for j in range(batch)]
        by_image = targets_of([positives[i][j] for j in range(batch)], i, mode)
        by_text = targets_of([positives[j][i] for j in range(batch)], i, mode)
        total = total + row_cross_entropy(over_texts, by_image) + row_cross_entropy(over_images, by_text)
    return total / (2 * batch)


def one_pair_alignment(queries, keys, weights, temperature, normalise_context):
    """Σ_j ω_j ½[CE(Z_j:, j) + CE(Z_:j, j)] for the valid tokens of one pair."""
    q = [normalised(list(x)) for x in queries]
    k = [normalised(list(x)) for x in keys]
    attended = []
    for j in range(len(q)):
        a = softmax([dot(q[j], key) / temperature for key in k])
        context = [sum(a[n] * k[n][d] for n in range(len(k))) for d in range(len(q[j]))]
        attended.append(normalised(context) if normalise_context else context)
    z = [[dot(query, context) / temperature for context in attended] for query in q]
    total = torch.zeros((), dtype=torch.float64)
    for j in range(len(q)):
        row = -log_softmax_at(z[j], j)
        column = -log_softmax_at([z[n][j] for n in range(len(q))], j)
        total = total + weights[j] * (row + column) / 2
    return total


def quantile(values, q):
    """Linear interpolation between order statistics."""
    values = sorted(values)
    place = q * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


def token_weights(weights, mask):
    """ω of one row's valid tokens: uniform, or attention clipped to its 10–90 % quantiles, sum 1."""
    valid = [n for n in range(len(mask)) if mask[n]]
    if weights is None or all(float(weights[n]) == 0 for n in valid):
        return [1 / len(valid) for _ in valid]
    positive = [float(weights[n]) for n in valid if float(weights[n]) > 0]
    low, high = quantile(positive, 0.1), quantile(positive, 0.9)
    clipped = [min(max(float(weights[n]), low), high) if float(weights[n]) > 0 else 0.0 for n in valid]
    return [w / sum(clipped) for w in clipped]


def token_alignment(
    words, regions, word_mask, region_mask, word_weights, region_weights, temperature, raw_patch_context
):
    """(1/B) Σ over pairs of L_word + L_patch, padding left out altogether."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(words)):
        w = [words[i][n] for n in range(len(words[i])) if word_mask[i][n]]
        p = [regions[i][n] for n in range(len(regions[i])) if region_mask[i][n]]
        if not w or not p:
            continue
        omega_w = token_weights(None if word_weights is None else word_weights[i], word_mask[i])
        omega_p = token_weights(None if region_weights is None else region_weights[i], region_mask[i])
        total = total + one_pair_alignment(w, p, omega_w, temperature, True)
        total = total + one_pair_alignment(p, w, omega_p, temperature, not raw_patch_context)
    return total / len(words)


def sinkhorn(scores, epsilon, iterations):
    """METHODS §2.2 to the letter: exp, total, rows to 1/K, columns to 1/B, columns to 1, transpose."""
    samples, prototypes = len(scores), len(scores[0])
    q = [[torch.exp(scores[b][k] / epsilon) for b in range(samples)] for k in range(prototypes)]
    total = sum(sum(row) for row in q)
    q = [[x / total for x in row] for row in q]
    for _ in range(iterations):
        q = [[x / sum(row) / prototypes for x in row] for row in q]
        columns = [sum(q[k][b] for k in range(prototypes)) for b in range(samples)]
        q = [[q[k][b] / columns[b] / samples for b in range(samples)] for k in range(prototypes)]
    columns = [sum(q[k][b] for k in range(prototypes)) for b in range(samples)]
    return [[(q[k][b] / columns[b]).detach() for k in range(prototypes)] for b in range(samples)]


def prototype_alignment(images, texts, prototypes, temperature, epsilon, iterations):
    z = []
    for side in (images, texts):
        z.append([[dot(normalised(list(x)), list(c)) for c in prototypes] for x in side])
    q = [sinkhorn(scores, epsilon, iterations) for scores in z]
    total = torch.zeros((), dtype=torch.float64)
    for teacher, student in ((0, 1), (1, 0)):
        for b in range(len(images)):
            logits = [score / temperature for score in z[student][b]]
            for k in range(len(prototypes)):
                total = total - q[teacher][b][k] * log_softmax_at(logits, k)
    return total / (2 * len(images))


def sentence_score(sentence, regions, temperature):
    """Σ_p a_p (e·p), a = softmax(e·p/τ), over the valid regions of one image."""
    e = normalised(list(sentence))
    similarity = [dot(e, normalised(list(p))) for p in regions]
    a = softmax([x / temperature for x in similarity])
    return sum(a[n] * similarity[n] for n in range(len(similarity)))


def sentence_region_loss(
    sentences, regions, sentence_mask, region_mask, positives, keys, scale, temperature, mode, shared
):
    """The mean over all valid sentences of their cross-entropy over the images of the batch."""
    batch = len(regions)
    losses = []
    for r in range(batch):
        for m in range(len(sentences[r])):
            if not sentence_mask[r][m]:
                continue
            logits, right = {}, {}
            for b in range(batch):
                said = keys is not None and any(
                    sentence_mask[b][o] and keys[b][o] == keys[r][m] for o in range(len(sentences[b]))
                )
                if said and shared == "mask" and b != r:
                    continue
                valid = [regions[b][n] for n in range(len(regions[b])) if region_mask[b][n]]
                logits[b] = scale * sentence_score(sentences[r][m], valid, temperature)
                right[b] = 1.0 if said and shared == "positive" else float(positives[b][r])
            kept = list(logits)
            target = targets_of([right[b] for b in kept], kept.index(r), mode)
            losses.append(row_cross_entropy([logits[b] for b in kept], target))
    return sum(losses) / len(losses)
