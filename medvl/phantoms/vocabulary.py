"""The words of the phantom reports: templates of findings, negations, normal and unobservable sentences."""

from __future__ import annotations

__all__ = [
    "COMPARISONS",
    "IMPRESSION_NORMAL",
    "INDICATIONS",
    "LOBES",
    "NEGATED",
    "NORMAL",
    "NORMAL_LUNGS",
    "POSITIVE",
    "SEVERITY_WORDS",
    "SHORT",
    "SIDE_WORDS",
    "SIZE_WORDS",
    "TERMS",
    "UNOBSERVABLE",
]

SIZE_WORDS = {
    "small": ("small", "small", "tiny"),
    "medium": ("moderate-sized", "medium-sized"),
    "large": ("large", "large", "sizeable"),
}
SEVERITY_WORDS = {
    "mild": ("mild", "mild", "slight", "minimal"),
    "moderate": ("moderate",),
    "severe": ("severe", "severe", "marked"),
}
LOBES = {
    ("left", "upper"): "LUL",
    ("left", "middle"): "lingula",
    ("left", "lower"): "LLL",
    ("right", "upper"): "RUL",
    ("right", "middle"): "RML",
    ("right", "lower"): "RLL",
}
SIDE_WORDS = {
    "left": ("left", "lul", "lingula", "lll"),
    "right": ("right", "rul", "rml", "rll"),
    "bilateral": ("bilateral", "both", "b/l"),
    "none": ("",),
}
"""Words of which a sentence about a finding holds at least one, by the finding's side."""

POSITIVE = {
    "nodule": (
        "there is a {mm} mm nodule in the {place}.",
        "a {size} rounded opacity projects over the {place}, measuring {mm} mm.",
        "{size} pulmonary nodule in the {place}.",
        "{texture} nodular opacity in the {place}, approximately {mm} mm.",
    ),
    "consolidation": (
        "{texture} consolidation in the {place}.",
        "there is a {size} airspace opacity in the {place}.",
        "{size} area of {texture} airspace consolidation in the {place}.",
        "{texture} {place} airspace disease, {size} in extent.",
    ),
    "pleural_effusion": (
        "there is a {size} {side} pleural effusion.",
        "{size} {side} effusion{plural}.",
        "blunting of {angle} in keeping with a {size} pleural effusion.",
        "{size} {side} pleural fluid collection{plural}.",
    ),
    "pneumothorax": (
        "there is a {size} {side} apical pneumothorax.",
        "{size} {side} pneumothorax.",
        "a {side} pleural line is visible, consistent with a {size} PTX.",
        "{size} {side}-sided pneumothorax without tension.",
    ),
    "cardiomegaly": (
        "{severity} cardiomegaly.",
        "the heart is {degree} enlarged.",
        "the cardiac silhouette is {degree} enlarged.",
        "{severity} enlargement of the heart, CTR increased.",
    ),
    "interstitial_edema": (
        "{severity} bilateral interstitial edema.",
        "there is {severity} interstitial pulmonary edema, bilateral.",
        "{severity} bilateral increase of interstitial markings with Kerley B lines.",
        "pulmonary vascular congestion with {severity} b/l interstitial edema.",
    ),
}
SHORT = {
    "nodule": ("{place} nodule, {mm} mm.", "{size} nodule in the {place}."),
    "consolidation": ("{place} consolidation.", "{texture} airspace disease in the {place}."),
    "pleural_effusion": ("{size} {side} pleural effusion{plural}.", "{side} effusion{plural}, {size}."),
    "pneumothorax": ("{size} {side} pneumothorax.", "{side} PTX, {size}."),
    "cardiomegaly": ("{severity} cardiomegaly.", "enlarged heart, {severity}."),
    "interstitial_edema": ("{severity} bilateral interstitial edema.", "b/l interstitial edema, {severity}."),
}
TERMS = {
    "nodule": "pulmonary nodule",
    "consolidation": "focal consolidation",
    "pleural_effusion": "pleural effusion",
    "pneumothorax": "pneumothorax",
    "interstitial_edema": "interstitial edema",
}
"""Findings that one sentence can deny together."""

NEGATED = {
    "nodule": ("No pulmonary nodule is seen.", "No suspicious nodule.", "There is no nodule or mass."),
    "consolidation": (
        "No focal consolidation.",
        "There is no airspace opacity.",
        "No evidence of consolidation.",
    ),
    "pleural_effusion": (
        "No pleural effusion.",
        "No effusion is seen.",
        "The CP angles are sharp, w/o effusion.",
    ),
    "pneumothorax": ("No pneumothorax.", "No PTX.", "There is no evidence of pneumothorax."),
    "cardiomegaly": (
        "No cardiomegaly.",
        "Heart size is normal.",
        "The cardiac silhouette is within normal limits.",
    ),
    "interstitial_edema": (
        "No interstitial edema.",
        "There is no pulmonary edema.",
        "Pulmonary vascularity is normal, w/o edema.",
    ),
}
NORMAL = (
    "The osseous structures are intact.",
    "The trachea is midline.",
    "The mediastinal contours are unremarkable.",
    "No acute bony abnormality is identified.",
    "The visualized upper abdomen is unremarkable.",
    "The soft tissues of the chest wall are unremarkable.",
    "The aortic contour is normal.",
    "The clavicles and visualized ribs show no fracture.",
    "No free air is seen beneath the diaphragm.",
)
NORMAL_LUNGS = ("The lungs are clear.", "The lungs are well expanded and clear.")
IMPRESSION_NORMAL = (
    "No acute cardiopulmonary abnormality.",
    "No acute cardiopulmonary process.",
    "Normal chest radiograph.",
    "No acute disease.",
)

INDICATIONS = (
    "Cough.",
    "Chest pain.",
    "Shortness of breath.",
    "Fever.",
    "Preoperative evaluation.",
    "Dyspnea for 3 days.",
    "Routine follow-up.",
    "Trauma.",
)
COMPARISONS = ("None.", "None available.", "Prior chest radiograph.", "Outside study.")
UNOBSERVABLE = {
    "history": (
        "The patient has a history of hypertension.",
        "Known smoker with 20 pack years.",
        "Status post remote appendectomy by history.",
    ),
    "laboratory": (
        "White cell count is elevated at 13.2.",
        "CRP was 48 mg/L on admission.",
        "Troponin is negative per the chart.",
    ),
    "communication": (
        "Findings were discussed with the referring physician by telephone.",
        "Results were communicated to the ward at the time of reading.",
        "The ordering team was notified.",
    ),
    "prior": (
        "Comparison is made with the prior examination, no interval change.",
        "Unchanged from the previous study.",
        "Compared to the prior radiograph, the appearance is stable.",
    ),
    "recommendation": (
        "Clinical correlation is recommended.",
        "Follow-up radiograph is recommended in 6 weeks.",
        "CT of the chest may be obtained if clinically indicated.",
    ),
    "technique": (
        "Two attempts were made to obtain the image.",
        "The study was acquired at the bedside by the night team.",
    ),
}
"""Sentences that no image can show, by category; each is equally likely in health and disease."""
