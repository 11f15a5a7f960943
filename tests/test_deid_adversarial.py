"""Renderings that a hospital produces and that must go, and clinical sentences that must not change."""

from __future__ import annotations

import pytest

from medvl.preprocess.deid.text import deidentify_text

JOHN = ("DOE^JOHN^Q",)

# Text, names and ids of the patient, and what must not be in the clean text.
CARRIERS: list[tuple[str, tuple[str, ...], tuple[str, ...], list[str]]] = [
    ("Patient DOE,JOHN seen.", JOHN, (), ["DOE", "JOHN"]),
    ("J.D. is well; J.Q.D. too.", JOHN, (), ["J.D", "J.Q.D"]),
    ("Pt J. D. returned.", JOHN, (), ["J. D."]),
    ("Mrs Doe-Smith came.", ("DOE^JANE",), (), ["Doe", "Smith"]),
    ("Mrs Doe-Smith came.", (), (), ["Doe", "Smith"]),
    ("Doe's film. DOE'S FILM. Does' film", JOHN, (), ["Doe'", "DOE'"]),
    ("Seen: John\nDoe in clinic.", JOHN, (), ["John", "Doe"]),
    ("Seen: Rose\nHill in clinic.", ("HILL^ROSE",), (), ["Rose", "Hill"]),
    ("Seen by Jo-\nhn Doe.", JOHN, (), ["hn Doe", "Doe"]),
    ("José García seen", ("GARCIA^JOSE",), (), ["José", "García"]),
    ("Jose Garcia seen", ("GARCÍA^JOSÉ",), (), ["Jose", "Garcia"]),
    ("Mueller seen. Muller seen.", ("MÜLLER^JÜRGEN",), (), ["Mueller", "Muller"]),
    ("Müller seen.", ("MÜLLER^JÜRGEN",), (), ["ller"]),
    ("O’Brien, OBrien, O Brien, O'BRIEN, Obrien seen", ("O'Brien^Pat",), (), ["Brien", "BRIEN", "brien"]),
    ("MacDonald; Mc Donald; McDonald came", ("MCDONALD^IAN",), (), ["Donald came", "McDonald", "Mc Donald"]),
    ("Van Der Berg came, van den Berg; Vanderberg", ("VAN DER BERG^ANNA",), (), ["Berg came"]),
    ("John Doe Jr. and John Doe III", JOHN, (), ["John", "Doe"]),
    ("Johnny: Doe,J; J.Doe; JDoe; DoeJ; jdoe@x", JOHN, (), ["Doe,", "J.Doe", "JDoe"]),
    ("doe_john_q.jpg JOHNDOE johndoe", JOHN, (), ["doe_john", "JOHNDOE", "johndoe"]),
    (
        "Discussed with Dr. Lee-Wong, Dr O'Neil and Drs. Smith and Jones.",
        (),
        (),
        ["Lee", "Wong", "Neil", "Smith", "Jones"],
    ),
    ("Drs. Smith, Jones & Brown", (), (), ["Smith", "Jones", "Brown"]),
    ("Dr. J. Smith", (), (), ["Smith", "J."]),
    ("Dr. van der Berg called. Dr. de Silva called. Dr. el-Sayed.", (), (), ["Berg", "Silva", "Sayed"]),
    ("Dr.Smith and DR.JONES", (), (), ["Smith", "JONES"]),
    ("DR SMITH NOTIFIED", (), (), ["SMITH"]),
    ("Dr  Smith notified", (), (), ["Smith"]),
    ("Dr.\nSmith notified", (), (), ["Smith"]),
    ("dr smith was called", (), (), ["smith"]),
    ("Drs Smith notified; Doctor Ann Smith", (), (), ["Smith"]),
    ("Mr Smith; MR. SMITH; MRS SMITH; Ms. smith", (), (), ["Smith", "SMITH", "smith"]),
    (
        "Señora Gonzalez; Sr. Gonzalez; Frau Schmidt; Herr Schmidt; Mme Dupont; M. Dupont",
        (),
        (),
        ["Gonzalez", "Schmidt"],
    ),
    ("/Signed/ John Smith MD 3/12/15", (), (), ["Smith", "3/12/15"]),
    ("Electronically Signed: Smith, John A, MD", (), (), ["Smith", "John"]),
    ("ELECTRONICALLY SIGNED BY: SMITH, JOHN A MD", (), (), ["SMITH", "JOHN"]),
    ("Signed by John Smith on behalf of Mary Jones", (), (), ["Smith", "Jones"]),
    ("I, John Smith, have reviewed the images", (), (), ["Smith"]),
    ("Findings were communicated to Mary Jones RN at 10:15", (), (), ["Jones"]),
    ("Findings discussed with Mary Jones at 10:15", (), (), ["Jones"]),
    ("Results called to Nurse Jones at 10:15", (), (), ["Jones"]),
    ("Attending: Mary Jones MD; Resident: Ann Li", (), (), ["Jones", "Ann"]),
    (
        "Mary Jones, DNP; Ann Wu, FACR; Bob Roe, PhD; Tim Poe, MBBS; Al Koe, M.B.B.S.",
        (),
        (),
        ["Jones", "Wu", "Roe", "Poe"],
    ),
    ("Thank you, John Smith\nConsultant radiologist", (), (), ["Smith"]),
    ("Name: SMITH JOHN   DOB: 07/04/1931", (), (), ["SMITH", "JOHN", "07/04/1931"]),
    ("DOB 4.7.1931; born 1931", (), (), ["4.7.1931"]),
    ("DOB: 4 July 31", (), (), ["July 31"]),
    ("PID|1||123456^^^HOSP||SMITH^JOHN^Q||19310704|M", (), (), ["SMITH", "JOHN", "123456", "19310704"]),
    ("OBR signed SMITH^JOHN^^^DR", (), (), ["SMITH"]),
    ("MRN#1234567 mrn:1234567 MRN=1234567 MRN-1234567", (), (), ["1234567"]),
    ("MRN 12 34 56 7", (), (), ["34 56"]),
    ("id 00-12-345-67", (), ("001234567",), ["12-345"]),
    ("id 0012 34567", (), ("001234567",), ["34567"]),
    ("MRN1234567 seen, and mrn1234567x", (), ("MRN1234567",), ["1234567 seen"]),
    ("film AB1234_2.dcm", (), ("AB1234",), ["AB1234"]),
    ("film AB 1234; AB.1234; AB/1234", (), ("AB1234",), ["1234"]),
    ("ACC AB-1234, ab1234", (), ("AB-1234",), ["1234"]),
    ("Hosp No: H123456; Hospital No H123456; NHS No: 943 476 5919", (), (), ["123456", "476 5919"]),
    ("SSN: 123 45 6789, SS# 123456789", (), (), ["6789"]),
    ("accession number is E12345678", (), (), ["E12345678"]),
    ("Acc: 12345678; Acc# 12345678; Order 12345678", (), (), ["Acc: 12345678", "Acc# 12345678"]),
    ("tel +1 (617) 555-1234 x123; 617.555.1234; 6175551234; (617)555-1234 ext 22", (), (), ["555", "x123"]),
    ("Ph: 5551234; Ph 555-1234; 555-1234 is the number", (), (), ["5551234"]),
    (
        "fon 030/1234567; Tel.: 030 12345-67; 0044 20 7946 0958; 020 7946 0958",
        (),
        (),
        ["1234567", "12345-67", "7946"],
    ),
    ("01 42 68 53 00", (), (), ["68 53"]),
    ("bleep 1234; pager #12-345; bleep: 4321; VM 12345", (), (), ["1234;", "12-345", "4321"]),
    ("on 2015-03-12T10:15:00Z and 2015-03-12 10:15:00.123", (), (), ["2015-03-12"]),
    (
        "12-Mar-15 and 12.Mar.2015 and Mar-12-2015 and Mar/12/2015 and 12/Mar/2015",
        (),
        (),
        ["12-Mar-15", "12.Mar.2015", "Mar-12-2015", "Mar/12/2015", "12/Mar/2015"],
    ),
    ("seen 3/14 in clinic. Film from 3/14.", (), (), ["from 3/14"]),
    ("yesterday 14th of March", (), (), ["14th of March"]),
    ("between 03/12-03/14/2015", (), (), ["03/12", "03/14/2015"]),
    ("03/12/2015-03/14/2015 03/12/2015–03/14/2015", (), (), ["03/12/2015", "03/14/2015"]),
    ("fiscal 2015/03, 2015.03.12, 2015_03_12", (), (), ["2015/03", "2015.03.12", "2015_03_12"]),
    (
        "vom 12. März 2015; 12.3.15; 12. Mai 2015; 3.12.2015",
        (),
        (),
        ["12. März 2015", "12. Mai 2015", "3.12.2015"],
    ),
    (
        "12 de marzo de 2015; 12 mars 2015; 12 maart 2015; 12 marzo 2015",
        (),
        (),
        ["12 de marzo", "12 mars 2015"],
    ),
    ("12 MAR 15; MAR 12 15; March 12 '15; Mar '15", (), (), ["12 MAR 15"]),
    ("12/03/15 10:30; 12/3/15,", (), (), ["12/03/15", "12/3/15"]),
    (
        "March 12 and 14, 2015; March 12-14, 2015; 12-14 March 2015; March 12/14, 2015",
        (),
        (),
        ["March 12 and 14", "March 12-14", "12-14 March"],
    ),
    ("the 12th; on the 14th March; 2015 March 12", (), (), ["14th March", "2015 March 12"]),
    ("20150312_101500 and 2015 03 12 and 03122015 and 031215", (), (), ["20150312"]),
    (
        "1st of January 1999 ; Jan.1,1999 ; January 1st,1999; 1Jan99",
        (),
        (),
        ["January 1999", "Jan.1,1999", "1st,1999", "1Jan99"],
    ),
    ("3/2015-5/2015; since 3/15; as of 03-2015", (), (), ["3/2015", "03-2015"]),
    ("Comparison: 3/12/15, 2/1/15 and 1/3.", (), (), ["3/12/15", "2/1/15"]),
    ("Comparison: none recent, CT 3/12/15 at 0815hrs", (), (), ["3/12/15"]),
    (
        "age 95; 95 year old; 95yo; 95y; 95-y-o; 95 y.o.; aged 102 years; 95 years; 95Y M; A 95 M",
        (),
        (),
        ["age 95", "95 year old", "95yo", "95-y-o", "95 y.o", "102 years"],
    ),
    ("ninety-five year old woman; ninety three-year-old", (), (), ["ninety-five", "ninety three"]),
    ("95 jähriger, 95 años, Age=95Y, Age 095Y", (), (), ["095Y"]),
    ("a.b@c.org; a.b (at) c.org; mailto:a.b@c.org; A.B@C.ORG", (), (), ["b@c", "B@C"]),
    ("pacs.hospital.org/view?pid=1 ftp://x.org/1 \\\\server\\share\\doe", (), (), ["ftp://x"]),
    ("192.168.1.12 host", (), (), ["192.168"]),
    ("12 Main St, Apt 4B, Boston MA 02115-1234", (), (), ["Main", "Boston", "02115"]),
    ("12 MAIN ST BOSTON MA 02115", (), (), ["MAIN"]),
    ("Hauptstraße 12, 80331 München; 12 rue de Rivoli", (), (), ["Hauptstraße 12"]),
    ("Address 12 Elm Grove, Leeds LS1 4AP", (), (), ["Elm", "LS1"]),
    ("PO Box 12; P O Box 77; 12 N 5th St", (), (), ["PO Box 12", "P O Box 77", "5th St"]),
    ("zip 02115; ZIP: 02115-1234", (), (), ["02115"]),
    ("UID 1.2.840.113619.2.55.3.604688119.971.1 in text", (), (), ["604688119"]),
    (
        "Mass General; Johns Hopkins Hospital; Hopkins Medical Center; Mayo Clinic",
        (),
        (),
        ["Hopkins", "Mayo"],
    ),
    ("Seen at Hospital Clinic de Barcelona, Klinikum Großhadern", (), (), ["Barcelona"]),
    ("Brown is well. Mr. Brown: brown fat", ("BROWN^JOHN",), (), ["Mr. Brown"]),
    ("Mass, Anna: a mass. Anna Mass.", ("MASS^ANNA",), (), ["Anna", "Mass,"]),
    ("ROSE HILL IS WELL. MS. HILL.", ("HILL^ROSE",), (), ["ROSE", "HILL"]),
    (
        "王小东 (Wang XiaoDong) is well. 王 小东 too",
        ("Wang^XiaoDong=王^小东",),
        (),
        ["Wang", "Xiao", "王", "小东"],
    ),
    ("Хидеки; Ямада Тарō; ヤマダ タロウ", ("Yamada^Tarou=山田^太郎=ヤマダ^タロウ",), (), ["ヤマダ"]),
    ("Kim Hong gil dong; 김 길동; 홍길동", ("Hong^Gildong=洪^吉洞=홍^길동",), (), ["Hong", "길동"]),
    (
        "Li Wei; LI WEI; Wei Li; WEI, LI; li wei; Li, W",
        ("LI^WEI",),
        (),
        ["Li Wei", "LI WEI", "Wei Li", "li wei", "Li, W"],
    ),
    ("Ng has a tube; Ms Ng; Ng, Amy; AMY NG", ("NG^AMY",), (), ["Ms Ng", "Amy", "AMY", "Ng,"]),
    ("Xu is well.", ("XU^A",), (), ["Xu"]),
    ("JÜRGEN MÜLLER; Jürgen Müller's", ("Müller^Jürgen",), (), ["MÜLLER", "Müller"]),
    ("İBRAHİM DEMİR seen", ("DEMİR^İBRAHİM",), (), ["DEM", "BRAH"]),
    ("STRASSE seen; Straße seen", ("STRASSE^KURT", "Weiß^A"), (), ["STRASSE"]),
    ("WEISS came", ("Weiß^Anna",), (), ["WEISS"]),
    ("Mr. Al Hassan; AL-HASSAN; Alhassan", ("AL-HASSAN^OMAR",), (), ["Hassan", "HASSAN"]),
    ("<b>Doe</b> &amp; Doe&#39;s Jöhn", JOHN, (), ["Doe"]),
    ("John\xa0Doe; John\tDoe; John  Doe; DOE , JOHN; DOE ,JOHN", JOHN, (), ["John", "Doe", "DOE", "JOHN"]),
    ("Rose\xa0Hill; Rose  Hill; HILL , ROSE", ("HILL^ROSE",), (), ["Rose", "Hill", "HILL", "ROSE"]),
    ("John\u200bDoe Do\xade", JOHN, (), ["John"]),
    ("Ｄｏｅ，Ｊｏｈｎ seen", JOHN, (), ["Ｄｏｅ"]),
    ("Baby Boy Doe; B/O Doe; BB DOE; Twin A Doe", JOHN, (), ["Doe", "DOE"]),
    ("PATIENT: DOE, JOHN Q.  MRN: 7654321", (), (), ["DOE", "JOHN", "7654321"]),
    ("Patient name JOHN SMITH is", (), (), ["SMITH"]),
    ("Pt. Smith, J. seen", (), (), ["Smith"]),
    ("The patient, John Smith, is", (), (), ["Smith"]),
    ("His wife Mary was told. Daughter (Anne Smith) agreed.", (), (), ["Mary", "Smith"]),
    ("cc: Dr. A. Smith; CC: Jones, Mary", (), (), ["Smith", "Jones"]),
    ("Referred by GP Jones of Elm Surgery", (), (), ["Jones"]),
    ("Performing tech: ABrown; Technologist: KLS", (), (), ["ABrown"]),
    ("Dr. Smith's patient; Dr. SMITH'S", (), (), ["Smith", "SMITH"]),
    ("discussed with Dr. Smith/Dr. Jones, Dr. Smith-dr. Jones", (), (), ["Smith"]),
]


@pytest.mark.parametrize(("text", "names", "ids", "gone"), CARRIERS, ids=range(len(CARRIERS)))
def test_no_rendering_is_left(text, names, ids, gone):
    clean, counts = deidentify_text(text, names=names, ids=ids, shift_days=-20)
    assert [word for word in gone if word in clean] == []
    assert counts
    again, _ = deidentify_text(clean, names=names, ids=ids)
    assert [word for word in gone if word in again] == []


CLINICAL = """\
Grade 3/4 stenosis, T2/T3, 10/12 ribs, 1.5/2.0 cm.
Disc bulge at L4-5, L5-S1, C3/4 and T11/12.
Series 5 image 112; series 5/112; se 5 im 112; image 3/112.
5/5 strength, 4/5 on the left.
2015 Fleischner criteria; Fleischner Society 2017.
May represent atelectasis. May 2 nodules.
March fracture of the metatarsal.
Dr. not consulted.
Hickman line, Swan-Ganz catheter, Dobhoff tube, Foley catheter, Port-A-Cath.
Kerley B lines and Baker cyst. Kerley A.
Young's modulus; Hodgkin lymphoma; non-Hodgkin; St. Jude valve.
Rose Bengal test; Gram stain; Ziehl-Neelsen stain.
PA 12.5 mm; LA 4.1; AP 12 cm.
kVp 120 mAs 200; 120 mAs; CTDIvol 12.5 mGy; DLP 512.34.
4-5-6 ribs fractured; ribs 4-5-6; ribs 3-10; ribs 3/4/5.
512 512 1024; matrix 512 x 512; 512/512/1024.
Levels T10-12-13; C5-C6-C7.
Ms. no change.
MS lesions of the brain; MS 12 years.
DR CHEST PA AND LATERAL; DR Abdomen; DR Chest.
MR Brain with contrast; MR ABDOMEN; MR Angiography.
MRS Spectroscopy. MR Enterography normal.
Chest PA and lateral, read by AI.
Salter-Harris II fracture; Weber B; Garden III; Neer two-part.
Bochdalek hernia; Morgagni hernia; Schmorl node; Hill-Sachs lesion; Bankart lesion.
Pancoast tumor; Westermark sign; Hampton hump; Fleischner sign.
Ghon focus; Ranke complex; Assmann focus.
Graves disease, Crohn disease, Marfan syndrome, Down syndrome, Paget disease of bone.
Kaposi sarcoma; Wilms tumor; Ewing sarcoma; Langerhans cell histiocytosis.
Harrington rods; Luque rods; Greenfield filter; Amplatzer device; Watchman device.
Blalock-Taussig shunt; Fontan; Glenn; Mustard; Ross procedure.
Starr-Edwards valve; Bjork-Shiley valve; Carpentier-Edwards ring; Edwards SAPIEN 3.
Cobb angle 12 degrees; Wells score 4.5; Hounsfield units.
Nissen fundoplication; Whipple procedure; Billroth II; Ivor Lewis esophagectomy.
Reported by patient: cough. Performed by standard technique. Reviewed by committee.
Ordered by ED. Read by Radiology. Interpreted by AI.
Requested By: ER physician. Read by: night team.
Patient: Upright AP. Patient: Semi Upright. Patient: Rotated, Supine.
Name: Chest X-Ray. NAME OF EXAM: Chest, PA. Exam name: CT Chest.
RE: Chest Pain. Re: Left Knee.
Technologist: none. Physician: unknown. Radiologist: see below.
Resident: moderate effusion. Attending: agree.
Provider: Emergency Department. Fellow: None.
Name: Left Lower Lobe.
Chest port: tip in SVC. Power port. PICC 45 cm.
WBC cell count: 12000. Mobile chest X-ray 3. Fax machine.
Tip 12-15 mm above the carina; ET tube 4-5 cm.
Case 12; Specimen 1; Study number 3; Exam number 2; Order 3.
Chart review; record review; record 12345 not.
MRN: none. Accession: pending.
Lesion number 1234 of the atlas; number 12 French.
Compared to study of 3 days ago; 2 of 3 lesions; on 1/2 dose; since 2/3 of films.
Ratio on 3/4 of slices; seen on 2/3 images; obtained on 1/4 inch; on 5/8 of the field.
on 3/5 images; seen on 12/24 slices; present on 2/5 sections.
Compared with 3/8 previously.
12/05 sections; 5/10 pain; score of 3/10; images 10/25 and 11/25.
Scale 3/10 and motor 4/5 since 2 weeks.
Hematocrit 30/10/2; 10/12/14 mm; 1/2/3.
Flow 12.03.15 mL; version 10.12.20.
At 1200 hours; at 12:30; 2000 mL; 1999 images; 2015 films.
2010-12 mm; 1900-20 HU; 2000-10 ml.
May-Thurner syndrome; May 5 mm be; may 5.
Sept tal thickening; dec reased; mar gin; jan.
Sun 12 exposure. Mon 3.
Second 4th rib, 3rd and 4th ribs.
Temperature 98.6F; temp 99F; 101 F.
Sat 95; HR 99; BP 140/95; weight 95 kg; age-related; aged blood 95 HU.
Age-indeterminate fracture; age 45; Bone age 12 years; Aged 34.
140 male patients; 120 M Hz; 97M; 
95 years ago? 95 year study.
Loop recorder; LINQ; AICD; Medtronic device; Boston Scientific stent; St. Jude Medical pacemaker.
Boston Scientific; Edwards Lifesciences; Johnson & Johnson.
Left Lane 3; 4 Chamber Way; 2 Vessel Place; 3 Vessel Disease; 12 Lead ECG.
3 Left Main Court; 2 View Chest; 1 View Place.
Hospital course; hospital day 3; Hospital Day 12; Hospital Acquired Pneumonia.
Seen in the Heart Failure Clinic. Valve Clinic. In Hospital.
Health Care Associated Pneumonia; Healthcare-associated pneumonia.
Medical Center line; Center of mass; germinal center; Group A.
Cancer Center; Cancer Imaging Group; Health System.
University of pain; CHF; Clinic note.
Findings, MD recommended; RN; PA view; RT lung; RT; DO not.
Chest, PA and lateral. Chest, RT. Ribs, RT lower. Lung, RT upper.
Knee, PA view; Abdomen, DO not; Left Hand, PA.
Right Chest Tube, PA view. Single View, PA.
Pulmonary Artery, PA. Chest MD CT. Wrist, NP.
NP swab; PA pressure; Heart Size, NP normal.
Portable AP, RN at bedside.
X-tension 3; Tension 1234 pneumothorax; extension 3 cm; extent 12 cm.
Extension 12-15 mm into the fat; Ext. rotation 45 deg.
T score -2.5, Z-score 1.2, #3 French, # 12 tube, tube #8.
fracture # 2; rib #4; Image #112; Study #2 of 3; Exam # 2.
HIV-1, CD4 345, COVID-19, SARS-CoV-2, H1N1, B12, P53, EGFR L858R.
mm2/s 1.2e-3; b=1000; TR/TE 500/15; 1.5T; 3.0 T; 3T.
SUVmax 12.3; SUV 3.4/2.1; 7.5-mm; 0.5/0.3.
TNM pT2bN1M0; stage IIIA; Gleason 4+3=7; PI-RADS 4; LI-RADS 5; Deauville 3.
Image Ser/Img 4/112; (4/112); (series 2, image 45/120).
HU 12-34-56; 1-2-3; 12-10-15 mm; x 10-12-15.
I-123 5 mCi; F-18 12 mCi; Tc-99m 25 mCi; Ga-68.
Omnipaque 350 100 mL; Isovue-370; 100 cc; eGFR 45.
www is not; a@b; x @ 3 cm; @ T12.
Drain in place; dr ain; draining sinus; Dr; dr.
Prof of concept; miss rib; misses; Miss placed tube; missed.
Doctor informed. Doctor on call notified. The doctor.
mr. normal; ms change; MS Changes; MR Findings.
MR Imaging of the brain; MR Cholangiopancreatography; DR Images; DR Views; MS Plaques.
By Report: stable. Per report. By CT criteria; By History.
Baby gram. Baby lungs. Babygram.
Patient: Female. Patient Name: [name].
Signed by: ___. Dictated by: XXXX. Dr. ___ was told.
Judet views; Merchant view; Towne view; Waters view; Caldwell view; Stryker notch.
Lisfranc; Chopart joint; Jones fracture; Smith fracture; Colles fracture; Bennett fracture; Rolando.
Jackson-Pratt drain; Blake drain; Penrose drain; Malecot catheter; Denver shunt; Hemovac.
Wegener granulomatosis; Churg-Strauss; Goodpasture; Caplan; Hamman-Rich; Lofgren; Heerfordt.
Chilaiditi sign; Rigler sign; Golden S sign; Luftsichel; Monod sign.
Virchow node; Cloquet node; Sister Mary Joseph nodule; Krukenberg.
Couinaud segment 4; Bosniak II; Balthazar C; Stanford type B; DeBakey I; Crawford II.
Ranson 3; Glasgow 15; Child-Pugh B; Kellgren-Lawrence 3; Outerbridge; Tanner 3.
Kirschner wire; Steinmann pin; Hoffmann device; Ilizarov frame; Rush rod; Gamma nail.
Hartmann pouch; Roux-en-Y; Kasai; Puestow; Ladd bands; Kocher; Pringle.
Pleur-X; PleurX; Groshong; Broviac; Tesio; Quinton; Mahurkar; Permacath; Mediport.
Rickham reservoir; Ommaya reservoir; Codman shunt; Strata valve; Hakim valve.
Sengstaken-Blakemore; Minnesota tube; Keofeed; Salem sump; Levin tube; Cantor tube; Miller-Abbott.
""".splitlines()


@pytest.mark.parametrize("text", CLINICAL, ids=range(len(CLINICAL)))
def test_a_clinical_sentence_stays_byte_by_byte(text):
    assert deidentify_text(text, shift_days=-20) == (text, {})


EPONYMS = [
    "Kerley B lines and a Baker cyst.",
    "Hill-Sachs lesion; Young's modulus; St. Jude valve.",
    "BAKER CYST. KERLEY B LINES.",
    "Foley catheter, Swan-Ganz catheter, Hickman line, Graves disease.",
    "Jackson-Pratt drain; Bosniak II; Weber B; Wells score 4.5.",
    "Vena cava filter; carina; descending colon; dens fracture; burns.",
]


@pytest.mark.parametrize("text", EPONYMS)
def test_eponyms_stay_when_a_patient_has_their_name(text):
    names = (
        "BAKER^HILL",
        "YOUNG^JUDE",
        "FOLEY^SWAN",
        "KERLEY^GRAVES",
        "WEBER^JACKSON",
        "COLON^CARINA",
        "BURNS^CAVA",
    )
    assert deidentify_text(text, names=names) == (text, {})


def test_a_patient_called_like_a_disease_still_goes():
    clean, _ = deidentify_text("Mr. Baker with a Baker cyst; Hill Baker was told.", names=("BAKER^HILL",))
    assert clean == "Mr. [name] with a Baker cyst; [name] was told."


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("12. März 2015", "20. Februar 2015"),  # 12 March 2015 - 20 days
        ("12 de marzo de 2015", "20 de febrero de 2015"),
        ("12 mars 2015", "20 février 2015"),
        ("2015/03", "2015/02"),
        ("03/12-03/14/2015", "02/20-02/22/2015"),
        ("March 12-14, 2015", "February 20-22, 2015"),
        ("Mar-12-2015", "Feb-20-2015"),
        ("2015_03_12", "2015_02_20"),
        ("20150312_101500", "20150220_101500"),
        ("31 février 2015", "[date]"),
    ],
)
def test_more_dates_keep_their_form(text, clean):
    assert deidentify_text(f"Since {text}.", shift_days=-20)[0] == f"Since {clean}."


def test_a_date_of_birth_goes_and_does_not_move():
    assert deidentify_text("DOB: 07/04/1931, seen", shift_days=-20)[0] == "DOB: [date], seen"
    assert deidentify_text("born 1931")[0] == "born [date]"
