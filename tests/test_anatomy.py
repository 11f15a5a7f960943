"""Which part of the body a sentence speaks of: whole words, the first part, the longest term."""

import time

import numpy as np
import pytest

from medvl.anatomy import (
    FINDING_PARTS,
    PARTS,
    finding_parts,
    named_parts,
    report_parts,
    sentence_parts,
)
from medvl.errors import ConfigError


def named(sentence, modality="cxr"):
    number = sentence_parts([sentence], modality=modality)[0]
    return PARTS[modality][number - 1] if number else None


@pytest.mark.parametrize(
    ("sentence", "part"),
    [
        ("The lungs are clear.", "lungs"),
        ("LLL consolidation", "lungs"),
        ("No pleural effusion or pneumothorax.", "pleura"),
        ("Blunting of the costo-phrenic angle.", None),  # "costo" and "phrenic" are no terms
        ("Blunting of the costophrenic angle.", "pleura"),
        ("Small left apical pneumothorax.", "pleura"),
        ("Heart size is normal.", "heart"),
        ("The cardiomediastinal silhouette is widened.", "mediastinum"),
        ("The trachea is midline.", "mediastinum"),
        ("No acute osseous abnormality.", "bones"),
        ("No free air beneath the diaphragm.", "abdomen"),
        ("Right PICC ends in the SVC.", "devices"),
        # The first part that is named wins …
        ("Left effusion with atelectasis.", "pleura"),
        ("Atelectasis with left effusion.", "lungs"),
        # … and of the terms that begin at one word the longest.
        ("The pulmonary artery is wide.", "mediastinum"),
        ("Pulmonary markings.", "lungs"),
        ("Pericardial effusion.", "heart"),
        ("Pleural drain in place.", "devices"),
        ("Cardiac pacemaker.", "devices"),
        # Plurals by rule and by the table.
        ("Several nodules.", "lungs"),
        ("Both hila are full.", "mediastinum"),
        ("The opacities are gone.", "lungs"),
        # Blanks, hyphens and slashes are the same.
        ("Air-space disease.", "lungs"),
        ("Swan/Ganz at the outflow tract.", "devices"),
        # Whole words only: no "lobe" in "globe", no "rib" in "distribution", no "port" in "portable",
        # no "pulmonary" in "cardiopulmonary", no "line" in "midline" or "baseline".
        ("The globe is intact.", None),
        ("The distribution is unchanged.", None),
        ("Portable view, baseline, midline.", None),
        ("No acute cardiopulmonary abnormality.", None),
        ("Unchanged.", None),
        ("", None),
    ],
)
def test_radiograph_sentences(sentence, part):
    assert named(sentence) == part


@pytest.mark.parametrize(
    ("sentence", "part"),
    [
        ("Calcific plaques in the coronary arteries.", "heart"),
        ("Atheromatous plaques in the aorta.", "vessels"),
        ("Sliding hiatal hernia.", "esophagus"),
        ("The trachea is open.", "airways"),
        ("Bronchiectasis in both lungs.", "airways"),
        ("Mosaic attenuation.", "lungs"),
        ("Lymphadenopathies in the axilla.", "mediastinum"),
        ("Stent in the LAD.", "devices"),
        ("The liver is normal in size.", "liver"),
        ("A stone in the gall bladder.", "gallbladder"),
        ("Spleen and pancreas are normal.", "spleen"),
        ("Simple cyst in the left kidney.", "kidneys"),
        ("The surrenal glands are plain.", "adrenals"),
        ("Diverticulosis of the sigmoid.", "bowel"),
        ("The urinary bladder is full.", "pelvis"),
        ("Renal pelvis dilated.", "kidneys"),
        ("Pelvic bones are intact.", "bones"),
        ("The abdominal aorta measures 31 mm.", "vessels"),
        ("Ascites.", "abdomen"),
    ],
)
def test_ct_sentences(sentence, part):
    assert named(sentence, "ct") == part


def told(sentence):
    return [PARTS["ct"][name.part - 1] for name in named_parts(sentence)]


@pytest.mark.parametrize(
    ("sentence", "parts"),
    [
        # 1. What only frames a sentence does not count, unless nothing else is named.
        ("In the evaluation of both lungs; the trachea is open.", ["airways"]),
        ("In the sections through the lungs, no pathology.", ["lungs"]),
        # 2. A relation and what follows it, up to a comma.
        ("Consolidation adjacent to the aorta, pleural effusion.", ["lungs", "pleura"]),
        ("Extending to the pleura.", ["pleura"]),
        # 3. An organ behind a finding of another part, or behind a device …
        ("Bronchiectasis in the left lung.", ["airways"]),
        ("Catheter in the right atrium.", ["devices"]),
        # … but not one that is a subject itself.
        ("No effusion in the pleura and the heart is large.", ["pleura", "pleura", "heart"]),
        # 4. Exact words before general ones before vague ones.
        ("Nodule of the spleen.", ["spleen"]),
        ("Mass in the abdomen.", ["abdomen"]),
        ("Nodule.", ["lungs"]),
        # 5. Lymph nodes take the organs around them with them.
        ("Lymph nodes between the aorta and the esophagus.", ["mediastinum"]),
        ("Lymph nodes along the iliac artery.", ["abdomen"]),
        ("The heart is large and there are lymph nodes.", ["heart", "mediastinum"]),
        # A heading gives its parts where the rest names none exactly.
        ("Heart and vessels: plain.", ["heart", "vessels"]),
        ("Lungs: pleural effusion.", ["pleura"]),
        ("Pericardial thickening and effusion.", ["heart"]),
    ],
)
def test_places_are_told_from_parts(sentence, parts):
    assert told(sentence) == parts


@pytest.mark.parametrize(
    ("sentences", "found"),
    [
        (["SPLEEN: Large.", "Measures 15 cm.", "The liver is plain.", "Measures 15 cm."],
         [("spleen", "named"), ("spleen", "heading"), ("liver", "named"), (None, "none")]),
        (["The kidney is small.", "It has a thin cortex.", "Follow-up is recommended.", "It is stable."],
         [("kidneys", "named"), ("kidneys", "leaning"), (None, "none"), (None, "none")]),
        # A vague word leans on an organ of the abdomen alone.
        (["The pancreas is plain.", "No mass."], [("pancreas", "named"), ("pancreas", "leaning")]),
        (["The heart is plain.", "No mass."], [("heart", "named"), ("lungs", "named")]),
        (["It is large."], [(None, "none")]),
        ([], []),
    ],
)  # fmt: skip
def test_sentences_lean_on_headings_and_on_each_other(sentences, found):
    parts = report_parts(sentences)
    assert [(PARTS["ct"][p.parts[0] - 1] if p.parts else None, p.rule) for p in parts] == found
    firsts = [p.parts[0] if p.parts else 0 for p in parts]
    assert sentence_parts(sentences, modality="ct").tolist() == firsts
    assert all(bool(p.named) == (p.rule == "named") for p in parts)


def test_a_monster_is_read_in_time():
    before = time.process_time()
    monster = "nodule adjacent to the liver and in the lung, lymph node of the aorta; " * 3000
    assert named_parts(monster)
    assert time.process_time() - before < 2


def test_one_number_a_sentence_whatever_the_case():
    found = sentence_parts(["HEART", "heart", "nothing", ""])
    assert found.dtype == np.int64 and found.tolist() == [3, 3, 0, 0]
    assert sentence_parts([]).shape == (0,)


CHEXPERT = """
    no_finding enlarged_cardiomediastinum cardiomegaly lung_opacity lung_lesion edema consolidation
    pneumonia atelectasis pneumothorax pleural_effusion pleural_other fracture support_devices
""".split()
CT_RATE = """
    medical_material arterial_wall_calcification cardiomegaly pericardial_effusion hiatal_hernia
    lymphadenopathy coronary_artery_wall_calcification emphysema atelectasis lung_nodule
    lung_opacity pulmonary_fibrotic_sequela pleural_effusion mosaic_attenuation_pattern
    peribronchial_thickening consolidation bronchiectasis interlobular_septal_thickening
""".split()


def test_every_finding_of_the_two_vocabularies_has_its_part():
    assert len(CHEXPERT) == 14 and len(CT_RATE) == 18
    assert [name for name in CHEXPERT if name not in FINDING_PARTS["cxr"]] == ["no_finding"]
    assert [name for name in CT_RATE if name not in FINDING_PARTS["ct"]] == []
    assert len(PARTS["cxr"]) == 7
    assert finding_parts(["support_devices", "unheard_of", "no_finding"]) == (7, 0, 0)
    # Every part is some finding's; the organs of the abdomen come last, for stores number the parts.
    assert set(PARTS["ct"]) == set(FINDING_PARTS["ct"].values())
    assert PARTS["ct"][7:11] == ("abdomen", "bones", "devices", "liver") and len(PARTS["ct"]) == 18
    for modality, findings in FINDING_PARTS.items():
        assert set(findings.values()) <= set(PARTS[modality])


def test_a_finding_named_in_words_is_in_its_part():
    for modality, findings in FINDING_PARTS.items():
        aliases = {"pleural_other": "pleural thickening", "support_devices": "support devices"}
        aliases |= {
            "medical_material": "surgical material",
            "arterial_wall_calcification": "aortic calcification",
        }
        aliases |= {"enlarged_cardiomediastinum": "widened mediastinum"}
        for finding, part in findings.items():
            sentence = aliases.get(finding, finding.replace("_", " "))
            assert named(f"There is {sentence}.", modality) == part, (modality, finding)


def test_unknown_modality():
    with pytest.raises(ConfigError, match=r"modality 'cxrr' has no table of parts\. Allowed: ct, cxr.*'cxr'"):
        sentence_parts(["heart"], modality="cxrr")
    with pytest.raises(ConfigError, match="modality 'pathology' has no table of parts"):
        finding_parts(["tumor"], modality="pathology")
    with pytest.raises(ConfigError, match="modality 'mr' has no table of parts"):
        named_parts("heart", modality="mr")
    with pytest.raises(ConfigError, match="modality 'mr' has no table of parts"):
        report_parts([], modality="mr")


def test_new_sentences_cost_microseconds_each():
    # A batch of 256 reports of 8 sentences is 2,048 sentences; the loader has them in well below 0.5 s.
    sentences = [
        f"At level {n} there is no change of the contour of something unnamed {n}." for n in range(2048)
    ]
    sentence_parts(["warm up"])
    before = time.process_time()
    sentence_parts(sentences)
    assert time.process_time() - before < 0.5
