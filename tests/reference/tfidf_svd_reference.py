"""Writes tests/golden/tfidf_svd.json: tf-idf values and a truncated SVD of a tiny corpus by scikit-learn.

Run: python tests/reference/tfidf_svd_reference.py   (scikit-learn, numpy)
"""
import json
import pathlib

import numpy as np
import sklearn
from sklearn.feature_extraction.text import TfidfVectorizer

texts = [
    "Red nail lacquer, shimmer; nail polish by Ópera",
    "Shatter crackle nail polish E55 (new)",
    "Crème hand cream with shea butter 0.5 oz",
    "Hand soap with shea butter & honey",
    "Shampoo for dry hair, 12 oz shampoo",
    "Conditioner for dry hair; argan oil",
    "Argan oil hair serum - travel_size",
    "Ψωμί και ΒΟΎΤΥΡΟ, bread and butter",
    "",
    "Lip balm honey butter, red shimmer",
    "Travel set: shampoo, conditioner, soap, hand cream",
    "Nail file new new new",
]

cases = []
for options in [
    dict(),
    dict(sublinear_tf=True, bigrams=True),
    dict(min_df=2, max_df=0.3),
    dict(max_features=3),
]:
    case = dict(min_df=1, max_df=1.0, max_features=None, sublinear_tf=False, bigrams=False) | options
    made = TfidfVectorizer(
        min_df=case["min_df"],
        max_df=case["max_df"],
        max_features=case["max_features"],
        sublinear_tf=case["sublinear_tf"],
        ngram_range=(1, 2) if case["bigrams"] else (1, 1),
    )
    m = made.fit_transform(texts)
    m.sort_indices()
    case |= dict(
        terms=made.get_feature_names_out().tolist(),
        offsets=m.indptr.tolist(),
        columns=m.indices.tolist(),
        values=m.data.tolist(),
    )
    cases.append(case)

a = TfidfVectorizer().fit_transform(texts).toarray()
u, s, vt = np.linalg.svd(a, full_matrices=False)
dim = 6
largest = vt[np.arange(len(vt)), np.abs(vt).argmax(axis=1)]
scores = (u * s * np.sign(largest))[:, :dim]
variance = scores.var(axis=0)
svd = dict(
    dim=dim,
    singular_values=s[:dim].tolist(),
    embeddings=scores.ravel().tolist(),
    explained_variance=variance.tolist(),
    explained_variance_ratio=(variance / a.var(axis=0).sum()).tolist(),
)
out = pathlib.Path(__file__).parent.parent / "golden" / "tfidf_svd.json"
software = f"scikit-learn {sklearn.__version__}, numpy {np.__version__}"
out.write_text(json.dumps(dict(software=software, texts=texts, tfidf=cases, svd=svd), ensure_ascii=False) + "\n")
print("singular values", s)
