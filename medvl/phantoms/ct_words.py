"""The words of the CT phantoms' reports: templates of findings, negations and normal organs."""

from __future__ import annotations

from medvl.phantoms.vocabulary import UNOBSERVABLE

__all__ = [
    "CT_COMPARISONS",
    "CT_IMPRESSION_NORMAL",
    "CT_INDICATIONS",
    "CT_NEGATED",
    "CT_NORMAL",
    "CT_POSITIVE",
    "CT_SHORT",
    "CT_UNOBSERVABLE",
    "ORGANS",
]

ORGANS: dict[str, tuple[str, ...]] = {
    "lungs": ("lung_nodule", "lung_opacity", "consolidation", "emphysema"),
    "airways": (),
    "pleura": ("pleural_effusion", "pneumothorax"),
    "heart": ("cardiomegaly", "pericardial_effusion", "coronary_artery_wall_calcification"),
    "vessels": ("arterial_wall_calcification",),
    "mediastinum": ("lymphadenopathy",),
    "esophagus": ("hiatal_hernia",),
    "liver": ("liver_lesion",),
    "gallbladder": (),
    "spleen": (),
    "pancreas": (),
    "kidneys": ("kidney_stone", "kidney_cyst"),
    "bones": ("rib_fracture", "sclerotic_bone_lesion"),
    "devices": ("medical_material",),
}
"""The organs in the order of a report, and the findings of each; keys are parts of ``medvl.anatomy``."""

HEADINGS = {
    "lungs": ("Lungs", "Lung parenchyma"),
    "airways": ("Airways",),
    "pleura": ("Pleura",),
    "heart": ("Heart", "Heart and pericardium"),
    "vessels": ("Vessels", "Great vessels"),
    "mediastinum": ("Mediastinum", "Mediastinum and hila"),
    "esophagus": ("Esophagus",),
    "liver": ("Liver",),
    "gallbladder": ("Gallbladder",),
    "spleen": ("Spleen",),
    "pancreas": ("Pancreas",),
    "kidneys": ("Kidneys",),
    "bones": ("Bones", "Skeleton"),
    "devices": ("Devices",),
}

CT_POSITIVE = {
    "lung_nodule": (
        "a {mm} mm solid nodule in the {place}.",
        "{size} pulmonary nodule in the {place}, measuring {mm} mm.",
        "solid pulmonary nodule of {cm} cm in the {place}.",
        "rounded nodule of {mm} mm in diameter in the {place} of the lung.",
    ),
    "lung_opacity": (
        "ground-glass opacity in the {place}, up to {mm} mm.",
        "{size} area of ground glass opacity in the {place}.",
        "hazy ground-glass density in the {place} measuring {cm} cm.",
    ),
    "consolidation": (
        "consolidation with air bronchograms in the {place}, {mm} mm wide.",
        "{size} airspace consolidation in the {place}.",
        "dense consolidation of {cm} cm in the {place}.",
    ),
    "emphysema": (
        "{severity} centrilobular emphysema in {place}.",
        "emphysematous changes of the lungs, {severity}, in {place}.",
        "{severity} emphysema with upper lobe predominance.",
    ),
    "pleural_effusion": (
        "{size} {side} pleural effusion{plural}, {mm} mm deep.",
        "{side} pleural effusion{plural} measuring {cm} cm at the thickest part.",
        "{size} {side} pleural fluid collection{plural}.",
    ),
    "pneumothorax": (
        "{size} {side} pneumothorax, {mm} mm at its widest.",
        "{side} anterior pneumothorax of {cm} cm.",
        "{size} {side}-sided pneumothorax without tension.",
    ),
    "cardiomegaly": (
        "{severity} cardiomegaly.",
        "the heart is {degree} enlarged.",
        "{severity} cardiac enlargement.",
    ),
    "pericardial_effusion": (
        "pericardial effusion, {mm} mm thick.",
        "circumferential pericardial effusion measuring {mm} mm.",
        "circumferential pericardial effusion, {size}.",
    ),
    "coronary_artery_wall_calcification": (
        "{severity} coronary artery calcification.",
        "calcified plaques of the coronary arteries, {severity}.",
        "{severity} calcification of the coronary artery walls.",
    ),
    "arterial_wall_calcification": (
        "{severity} calcified atheromatous plaques of the {place}.",
        "{severity} wall calcification of the {place}.",
        "atherosclerotic calcification of the {place}, {severity}.",
    ),
    "lymphadenopathy": (
        "enlarged {place} lymph nodes, up to {mm} mm in short axis.",
        "{place} lymphadenopathy, short axis {mm} mm.",
        "{place} lymphadenopathy measuring {cm} cm.",
    ),
    "hiatal_hernia": (
        "{size} hiatal hernia.",
        "{size} sliding hiatal hernia, {mm} mm wide.",
        "hiatal hernia of {cm} cm.",
    ),
    "rib_fracture": (
        "fracture of the {place}.",
        "displaced fracture of the {place} laterally.",
        "acute fracture of the {place} with mild displacement.",
    ),
    "sclerotic_bone_lesion": (
        "sclerotic lesion of {mm} mm in the {place} vertebral body.",
        "{size} sclerotic bone lesion in the {place} vertebra.",
        "dense sclerotic focus in the vertebral body of {place}, {mm} mm.",
    ),
    "liver_lesion": (
        "hypodense lesion of {mm} mm in the {place}.",
        "{size} hypoattenuating liver lesion in the {place}, {mm} mm.",
        "low-density focal hepatic lesion of {cm} cm in the {place}.",
    ),
    "kidney_stone": (
        "{mm} mm stone in the {place}.",
        "{size} calculus of {mm} mm in the {place}.",
        "nonobstructing renal stone of {mm} mm in the {place}.",
    ),
    "kidney_cyst": (
        "{mm} mm simple cyst of the {place}.",
        "{size} cortical cyst in the {place} measuring {mm} mm.",
        "simple renal cyst of {cm} cm in the {place}.",
    ),
}
MATERIAL_WORDS = {
    "central line": (
        "central venous catheter with its tip in the superior vena cava.",
        "right central venous line in place.",
    ),
    "port": (
        "port catheter of the right chest wall with its tip in the superior vena cava.",
        "right-sided port in place.",
    ),
    "pacemaker": (
        "pacemaker of the left chest wall with leads to the right heart.",
        "left-sided cardiac pacemaker in place.",
    ),
}
CT_SHORT = {
    "lung_nodule": ("{place} nodule, {mm} mm.", "pulmonary nodule in the {place}."),
    "lung_opacity": ("ground-glass opacity in the {place}.",),
    "consolidation": ("{place} consolidation.", "consolidation in the {place}, {size}."),
    "emphysema": ("{severity} emphysema.", "emphysema, {severity}."),
    "pleural_effusion": (
        "{size} {side} pleural effusion{plural}.",
        "{side} pleural effusion{plural}, {size}.",
    ),
    "pneumothorax": ("{size} {side} pneumothorax.", "{side} pneumothorax, {size}."),
    "cardiomegaly": ("{severity} cardiomegaly.", "enlarged heart, {severity}."),
    "pericardial_effusion": ("pericardial effusion, {size}.", "pericardial effusion, {mm} mm."),
    "coronary_artery_wall_calcification": (
        "coronary artery calcification.",
        "coronary atherosclerosis with calcification.",
    ),
    "arterial_wall_calcification": (
        "calcified atherosclerosis of the {place}.",
        "aortic wall calcification.",
    ),
    "lymphadenopathy": ("{place} lymphadenopathy.", "lymphadenopathy, {place}, {mm} mm."),
    "hiatal_hernia": ("{size} hiatal hernia.", "hiatal hernia."),
    "rib_fracture": ("fracture of the {place}.", "{place} fracture."),
    "sclerotic_bone_lesion": ("sclerotic lesion of {place}.", "{place} sclerotic bone lesion, {mm} mm."),
    "liver_lesion": ("hypodense liver lesion, {mm} mm.", "focal lesion in the {place}."),
    "kidney_stone": ("{place} stone.", "{mm} mm calculus in the {place}."),
    "kidney_cyst": ("{place} cyst.", "simple cyst of the {place}, {mm} mm."),
}
CT_NEGATED = {
    "lung_nodule": (
        "No pulmonary nodule.",
        "No suspicious pulmonary nodule is seen.",
        "There is no lung nodule.",
    ),
    "lung_opacity": ("No ground-glass opacity.", "There is no ground glass opacity."),
    "consolidation": (
        "No consolidation.",
        "There is no focal consolidation.",
        "No airspace consolidation is seen.",
    ),
    "emphysema": ("No emphysema.", "There is no emphysematous change."),
    "pleural_effusion": (
        "No pleural effusion.",
        "Pleural effusion was not detected.",
        "There is no pleural fluid.",
    ),
    "pneumothorax": ("No pneumothorax.", "Pneumothorax was not observed."),
    "cardiomegaly": ("No cardiomegaly.", "The heart is not enlarged.", "Heart size is normal."),
    "pericardial_effusion": ("No pericardial effusion.", "Pericardial effusion was not observed."),
    "coronary_artery_wall_calcification": (
        "No coronary artery calcification.",
        "The coronary arteries show no calcification.",
    ),
    "arterial_wall_calcification": (
        "No calcified plaques of the aorta.",
        "The aortic wall shows no calcification.",
    ),
    "lymphadenopathy": (
        "No lymphadenopathy.",
        "No enlarged mediastinal lymph nodes.",
        "No pathologically enlarged lymph nodes in the mediastinum.",
    ),
    "hiatal_hernia": ("No hiatal hernia.", "There is no hiatal hernia."),
    "rib_fracture": ("No rib fracture.", "No acute fracture of the ribs."),
    "sclerotic_bone_lesion": ("No sclerotic bone lesion.", "No suspicious bone lesion."),
    "medical_material": ("No catheter or pacemaker.", "No medical material in the chest."),
    "liver_lesion": ("No focal liver lesion.", "No space-occupying lesion in the liver."),
    "kidney_stone": ("No kidney stone.", "No renal calculi."),
    "kidney_cyst": ("No renal cyst.", "No cystic lesion of the kidneys."),
}
CT_NORMAL = {
    "lungs": ("The lungs are clear.", "Both lungs are well aerated and clear.", "Lung parenchyma is normal."),
    "airways": (
        "The trachea and main bronchi are patent.",
        "Airways are open to the segmental level.",
        "Trachea and both main bronchi are open.",
    ),
    "pleura": ("The pleural spaces are clear.", "The pleura is unremarkable.", "No pleural abnormality."),
    "heart": (
        "The heart and pericardium are normal.",
        "Heart contour and size are normal, the pericardium is unremarkable.",
    ),
    "vessels": (
        "The thoracic aorta is of normal caliber without calcification.",
        "Great vessels are unremarkable.",
        "Aorta and pulmonary arteries are normal.",
    ),
    "mediastinum": ("The mediastinum is unremarkable.", "Mediastinal and hilar structures are normal."),
    "esophagus": ("The esophagus is unremarkable.", "Esophageal calibration is normal."),
    "liver": ("The liver is normal in size and density.", "The liver is unremarkable."),
    "gallbladder": ("The gallbladder is unremarkable.", "The gallbladder is normal, without stones."),
    "spleen": ("The spleen is normal in size.", "The spleen is unremarkable."),
    "pancreas": ("The pancreas is unremarkable.", "Pancreatic contours are normal."),
    "kidneys": ("Both kidneys are normal.", "The kidneys are unremarkable, without hydronephrosis."),
    "bones": (
        "Bone structures are intact.",
        "The osseous structures are unremarkable.",
        "No osseous abnormality.",
    ),
    "devices": ("No lines, tubes or devices.", "No device is seen."),
}
CT_IMPRESSION_NORMAL = (
    "No acute abnormality of the chest or upper abdomen.",
    "CT of chest and abdomen within normal limits.",
    "No significant abnormality.",
    "Normal CT of the thorax and abdomen.",
)
CT_INDICATIONS = (
    "Cough.",
    "Chest pain.",
    "Fever of unknown origin.",
    "Staging.",
    "Trauma.",
    "Dyspnea.",
    "Weight loss.",
    "Routine follow-up.",
)
CT_COMPARISONS = ("None.", "None available.", "Prior CT.", "Outside study.")
CT_TECHNIQUES = {
    0: ("Helical CT of chest and abdomen without intravenous contrast.", "Noncontrast multidetector CT."),
    1: ("Helical CT of chest and abdomen with intravenous contrast.", "Contrast-enhanced multidetector CT."),
}
CT_UNOBSERVABLE = {
    **{
        name: texts
        for name, texts in UNOBSERVABLE.items()
        if name in ("history", "laboratory", "communication")
    },
    "prior": (
        "Comparison is made with the prior CT, no interval change.",
        "Unchanged from the previous examination.",
        "Compared to the prior study, the appearance is stable.",
    ),
    "recommendation": (
        "Clinical correlation is recommended.",
        "Follow-up CT is recommended in 3 months.",
        "MRI may be obtained if clinically indicated.",
    ),
}
"""Sentences that no image can show, by category; each is equally likely in health and disease."""
