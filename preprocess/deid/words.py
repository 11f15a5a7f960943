"""Words of reports that are names too: what must not leave a report because somebody is called so."""

from __future__ import annotations

__all__ = ["ABBREVIATIONS", "CLINICAL", "COMMON", "EPONYMS", "NAMED_THINGS"]

COMMON = frozenset(
    """
    able ala alba alma amber ample angel ankle anterior aorta apex april arch arm art artery august aurora
    autumn back bad ball banks barium base basil bass bay bean bear bell best bill bird bishop black blade
    blank block blood bloom blue body bolt bolus bond bone bones book border bowel bowl bowman brace branch
    branches breast bright brook brown buck bullock burn burns bush cage calf calm camp canal cane cannon
    cap card carina carol carpal case cases cash cast catch cava cave cavity chance chase cherry chest chill
    chin christian chronic church clamp clavicle clay clear clip close coffin coil cold collar colon common
    condition cone contour contrast control cook copper coral cord core cortex costa cough count court cover
    coverage cramp crane crest cross crow crude cruz crystal cuff current cut cyst daisy dark dash dawn day
    days deal dean dear deep degree dens dense density derby device diamond dim disc disk dolor dome dose
    dot drain drake draw drew drive dry dual duct dull dust dusty ear early east easy edema edge effusion
    elbow element ember english enlarged eve even ever exam eye eyes face fair faith fall far farmer fascia
    fast fat feature fern fever few fibre fibroid fibrosis field fields film films findings fine finger fish
    fisher fistula flank flap flat fleet flood florence flow fluid fluoro focal foot ford forest fossa
    foster fountain fox fracture frank free french frost full fundus gale gall gap garden gas gates gauge
    gay gene gentle german gland glass glen globe gold good gore grace grade graft grand grant granuloma
    grave gray green grey groin gross ground grove grow guide gun gut guy hail hale hall hand hard hardy
    harm hart haven hay hazel hazy head heal heard heart heath heather heel heights held hernia high hila
    hilar hill hills hilum hip history hold holder hollow holly holmes home hood hook hope horn house humble
    hunter hyper image imaging implant impression in increase index infant infarct inferior interval iris
    iron island ivory ivy jack jade jaw jay jean joint joints jolly joy judge july june just keen key kidney
    king knee knight knob lace lake lamb lamina land lane large last lasting late lateral laurel law lead
    leaf leak lean leap left leg legs lens lenses lesion level levels light lily limb limbs limits line
    lines lingula link lion lip little liver lobe lobes lock long loop loops lord loss love low lowe lower
    luck lumen lump lung lungs lymph mace magna magnet major male malone man marble march margin mark marked
    marker marks marsh mask mass master max may meadow mean media medial medium melody member mercy merry
    mesh metal middle midline mild miles mill mills min mind miner minimal minor mist misty mitral mixed
    mobile moderate mold mole moles monk mood moody moon moor more morning moss motion motor mound mount
    mouth mural muscle nail nasal neck nerve new newly nice night noble node nodes nodule none normal north
    nose notable null oak old olive opacity opal open or orange orbital organ ovary page pain palate pale
    palm palmar pan panel parent paris park part parts past patch patchy patient peak pearl pedicle pelt
    pelvis penny pepper pericardium piece pin pine pink plain plane plaque plasma plate pleasant plenty plug
    plus point pole pond pons pool poor pope port porter position post posture potter pound power precious
    present pressure price pride prince prior process proud pulse pump queen quick quiet radial radius rain
    rami ramus range rash rate ratio ray read real rectal red reed reflux region remote renal report
    residual rest result rib ribs rice rich ridge right ring ripley rise river rivers road rob robin rock
    rod rods roof root rose rough round routine royal ruby rush rust rusty sac sacrum sage salt sand savage
    say scale scalp scan scar scarf scars score scout screw sea sector segment self sella senior sentinel
    sept septum serial series serra severe shade shadow shaft sharp shaw shell shepherd shift shin short
    shunt sickle side sign signal signs silent silver simple single sinus site size skin skull sky slice
    slight sling sloan slow small smart smooth snow soft sole son sonny source south space spacer spear
    speed spence spike spinal spine spleen splint spot spots spring spur stable stage stain standard
    standing star state status steady steel stella stem stenosis stent step sterling stern still stimulus
    stoma stomach stone stool storm story straight strain strand strange streak stream street stress stripe
    strong structure study sue sugar suggest sulcus summer sun superior supine support surface surgery
    sutton suture sutures sweat sweet swell swift symptom system table tail tall target tarsal team tear
    technique temple temporal tender tent test tests therapy thick thigh thin thoracic thorn throat thumb
    thyroid tibia tilt time tiny tip tissue toe toes tone tongue tonsil tooth top torso total tower town
    trace trachea tract trauma treat tree trial true trunk tube tuber tubes tubing tumor tumour turner twin
    type ulna ulnar union unit upper upright uvula vague valentine valve valves van vault vein vena venous
    vera vertex vessel vessels victor view views vine viola violet virgin vocal volume vomer wade waist wait
    walk walker wall walls ward warm wash waste water waters wax way weak wear weaver web wedge week weight
    well wells west wheeler white whole wide wild will window wing winter wires wise wolf wood woods word
    work worth wound wrist yard year years young zone
    """.split()
)
"""Names that are words of reports too: alone they stay, unless a title or their capital tells."""

ABBREVIATIONS = frozenset(
    """
    aaa ab abd abg abi ac acl acs ad adc adh adl af afp ai aki ala all als am ams an ana and ano ant any ao
    ap apa app aq are arm art as asa asd at av avf avm avn avp ax ba bal bap bcg be ber bi bid bin bm bmi
    bnp bp bpd bph br bs but bx by ca cab cad can cap cbd cc cca ccu cea ch chf ci cia ckd cll cm cml cms
    cmv cn cns co cod cog con cor cp cpd cpr cr crp crt cs csf ct cta ctv cu cv cvc cvp cx cxr da dad das db
    dc ddd ddh de del dem der des di dic die dig din dip dix dka dl dlp do dos dp dr ds dsa du dvt dx ea ear
    ebv ecg ed eeg ef eg egd ekg el ela em emg ems en end ent er era erc es esr est et ett eu eva evd evt ex
    eye fal fat fdg fe ffr fib fl fna for fov fr fu fvc fx ga gal gb gbm gcs gd ge gfr ggo gi gib gis git gm
    go gsv gt gu gy had hap has hb hcc hct he heh her hg hgb hi him his hit hiv hm hnp how hpv hr hrt hs hsv
    ht hu hx ia iab iac ib ibd ibn ibs ic ica icd icp icu id ie if ii ild im ima img in inf inr int io ip ir
    is it iud iv ivc ivf ivh ivp ix jp jr jvd kg km kub kv kvp kw lad lao lap las lat lb lbp lca lcx ldh leg
    les let lf lfa ll lll lmp ln los low lpo ls lt lul lut lv lvh mac mas may md me men met mg mgh mi mip ml
    mm mr mra mrc mri mrn mrv ms mt mva my na nan nc nd nec neg new ng ngt ni nil nl nm no nod non nor not
    now np npo nr ns nsr nt nv ob occ od of off oh ok old om on onc one op opd opg or ora orf ors os ot our
    out ow ox oz pa pad pap pas pat pb pc pca pcl pcn pcp pcs pda pe pea peg per pet pfa pfo pfs pft pg ph
    phd pid pif pip pm pna po pop pos pr pre prn pro ps psa psv pt ptx pud put pva pvc px qd qid ra rad ram
    ran rao rap ras raw rb rbc rca rd re red ref rem res rf rh rib rim rl rll rm rml rms rn ro roi rom rpo
    rt rul run rv rvh rx sa sad sah sal sat saw sba sbo sca scd sci sdh se see ser set sfa she si sib sic
    sin sir sis six sl sle sma smv sn snr so sob sol sop sp spa spo sq sr st sti suv sv svc svr sx ta tah
    tap tar tav tax tb tbi tc td te tee ten th tha the ti tia tib tid tip tka tl tlc tm tn to tof ton too
    top tot tpa tpn tr tra ts ttn tub tur two tx uac ufe uip um un und up uri urn us usa use ut uti uv uvc
    va vac vad van vap var vas vat vax vb vcu vd ven ves vi via vii vl vol von vs vsd vt vte was way wbc who
    why wk wt xi xrt yes yet yo you yr
    """.split()
)
"""Words of two and three letters that reports write with capitals: alone they stay."""

EPONYMS = frozenset(
    """
    achilles adamkiewicz adams addison albers albright allen alzheimer amplatz amplatzer andersson ann
    arnold aschoff assmann austin babinski baker bankart barrett bartholin barton basedow batson battle
    becker behcet bell belsey bennett berger bernard berry bertel billroth bjork blake blalock blount
    bochdalek boehler boerhaave bosniak bouchard bourneville bowman brenner broca brodie broviac brown
    brugada buck budd buerger burkitt byrd caldwell cameron campbell cantor caplan carney caroli carpentier
    castleman chagas chamberlain chance charcot cheadle chiari chilaiditi child chopart churg clark clutton
    cobb codman colles collis conn cook cooley cooper cope couinaud courvoisier cowden crawford crile crohn
    cronkhite cushing dacron dandy davis deauville debakey denis denonvilliers denver dieulafoy dix dobhoff
    dor dormia douglas down dressler duchenne duke dupuytren ebstein edwards ehlers eisenmenger ellis ely
    erb essex evans ewing fabry fallot fanconi farber felty ficat fick fisher fleischner flint foley
    fontaine fontan forrestier foster fowler frankel franklin freiberg galeazzi galen garden gardner
    gartland gaucher gerota ghon gilbert glasgow gleason glenn glisson golden goldenhar goodpasture gore
    gorlin graefe graham gram graves greenfield groshong guillain gustilo haglund hakim hamman hampton
    hangman hansen harrington harris harrison hartmann hashimoto hawkins heberden heerfordt heller henle
    henoch henry herring hesselbach hickman highmore hill hirschsprung hodgkin hodson hoffa hoffmann holmes
    holt homer honda horner hounsfield hunter huntington hurler hutchinson ilizarov ivor jackson jacobs
    james jefferson jeune johnson jones jude judet judkins kager kahler kaposi kartagener kasai kawasaki
    keith kellgren kennedy kerley kienbock kiesselbach kirschner klatskin klinefelter klippel kocher kohler
    kommerell krukenberg kummell ladd lambert langerhans larsen lauge law lawrence legg leriche levin lewis
    lewy lhermitte liddle lindau lisfranc lister littre ludwig luque luschka lyme lynch macintosh maffucci
    mahurkar maisonneuve malecot malgaigne mallory marfan markle marshall martin mason maxwell mayo mcburney
    mckeown meckel meigs menetrier merchant merkel merritt meyer miller minnesota mirizzi mitchell moberg
    mohs monro monteggia moore morel morgagni morison morrison morton mosaic muller munro murphy mustard
    nelson newman nissen norwood ogilvie ollier ommaya osgood osler outerbridge owen paget pancoast papillon
    park parkes parkinson parks parsonage patrick pearson pellegrini penrose perry perthes pfannenstiel
    phalen pick pierre pipkin poland pompe pott potter potts pratt pringle puestow pugh purkinje quinton
    radford ranke ranson rathke raynaud reed reiter rendu rex reynolds richter rickham riedel rigler ritter
    robertson robin robinson rolando rolland romberg rosen rosenthal ross rotter roux rush russell
    rutherford sachs salem salter sanders sapien sattler savary schatzki scheuermann schlatter schmorl
    schwann scott sengstaken senning sever sharpey shenton shone sims sinding sjogren smith sprengel stafne
    stanford starr steinmann stener stevens steward stewart still stryker sturge swan swanson sylvius
    takayasu tanner taussig taylor tesio thomas thompson thomson thurner tietze tile tillaux todd toupet
    towne treitz trevor turner valsalva vater virchow waldeyer waller wallis walton warren warthin waters
    waterston watson weber wegener weil wells werner wernicke westermark wharton whipple white wiberg
    wilkins williams willis wilms wilson winslow wolff wood young zenker ziehl zollinger
    """.split()
)
"""People after whom anatomy, diseases, signs and devices are called: a Baker cyst is nobody's name."""

NAMED_THINGS = frozenset(
    """
    abscess amputation anastomosis aneurysm angle anomaly approach arch artery arthropathy arthroplasty
    bands block bodies body bone bursa canal cannula capsule cardiomyopathy catheter cell cells chain chair
    circle clamp classification clip complex contracture criteria cuff cup curve cyst cysts defect deformity
    device devices diagram dialysis disc disease disorder diverticulum drain drainage drains duct effect
    ependymoma esophagectomy exostosis fascia filter filters fissure flap focus fold foramen foramina
    formula fossa fracture fractures frame fundoplication ganglion gangrene gastritis gland glands goiter
    grade grades graft granulomatosis groove hepatectomy hernia hernias histiocytosis hump index injury
    interval jejunostomy joint keel lateral lesion lesions leukemia lifesciences ligament limb line lines
    lipoma loop lymphadenitis lymphoma malformation maneuver manoeuvre mask medical membrane method modulus
    muscle nail nails needle neoplasm neuroma node nodes nodule nodules operation osteotomy pacemaker palsy
    pancreatitis paralysis patch perforation phenomenon physeal pin pins plane plaque plaques plate plates
    plexus plication point port ports position pouch procedure prostheses prosthesis ratio reaction
    reconstruction reflux repair resection reservoir retractor ring rings rod rods sarcoma scale scan
    scientific sclerosis score screw screws sequence series shunt shunts sign signs space sphincter sponge
    stage stain staining stenosis stent stents sternotomy strip subtype sump suture syndrome system
    technique tendon test tetrad tetralogy thyroiditis topogram tract triad triangle trocar tube tubercle
    tubes tubing tumor tumors tumour type types ulcer unit units valve valves variant vein view views wedge
    windows wire wires wrap zone
    """.split()
)
"""What is called after people."""

CLINICAL = frozenset(
    """
    abdomen abdominal above ac acetabulum acute additional adenoma adenopathy admitted adult ae aeration ai
    air airspace airway algorithm alignment ambulatory anatomy and anemia anesthesia anesthesiology aneurysm
    angina angiogram angiography ankle anterior antero aorta aortic aorto ap apex apical appears appendix
    area arrest arterial artery arthritis assessment asthma at atelectasis atrial atrium attached attending
    available aware axial axilla back base bases basic basilar below bilateral biopsy body bone bones bony
    both bowel brain breast breath bronchus cad calcaneus calcification calcified called cancer carcinoma
    cardiac cardio cardiology cardiomediastinal cardiomegaly cardiothoracic care carotid carpal catheter
    cavity central cervical chamber changes charge chest chronic clavicle clear clinic clinical coccyx code
    collapse colon committee common compared comparison compression computer congestion consolidation
    consult consultation continuity contours contrast copd coronal coronary cough course critical cross cta
    culture cyst daily day decreased decubitus deep deformity degenerative department dermatology device
    devices diabetes dialysis diaphragm digital disc disease dislocation distal doppler dose drain dual
    dyspnea echo ed edema effusion elbow elective element emergency emphysema endocrinology endotracheal
    enhanced enlarged enterography epigastric er erect esophageal esophagus exam examination expiration
    extremity face facet failure fall fast fat fellow femoral femur fetal fever fibrosis fibula film films
    findings finger flank floor flow fluid fluoroscopy follow foot foreign fracture frontal full function
    gallbladder gastric gastroenterology general given grade graft great guidance had hand hardware has head
    heart height hematology hematuria hemi hemodialysis hepatic hepatology hernia hilar hilum hip history
    hospice hospital hospitalist hour hours house humerus hypertension hypoxia icu iliac image images
    imaging impression in increased indication inferior informed initial inspiration intact intensive intern
    interval intervention intubated ir is ischemia isotope joint kidney knee kub labs laceration laparotomy
    last lateral lead left leg lesion leukocytosis level ligament limit limited line lines liver lobe lobes
    long loss low lower lumbar lumen lung lungs lymph main male mammography manager mandible mass maxillary
    medial mediastinal mediastinum medical medication metastatic mid middle mild minor mitral mobile
    moderate monitor morning mr mri multiple muscle nasal neck needle negative neonatal neonate nephrology
    nerve neuro neurologic neurology neurosurgery new newborn night no nodal node nodes nodule none normal
    not note notified nuclear nurse nursing ob obese oblique obstetrics obstruction of officer old oncology
    one opacities opacity open operating ophthalmology or oral orbit orthopaedics orthopedic orthopedics
    osseous other otolaryngology outpatient outside ox oxygen pa pacemaker pain pancreas paracentesis
    partial patchy patella pathology patient pediatric pediatrics pelvic pelvis pending performed perfusion
    pericardial peripheral pet phase physical physician picc place plain pleura pleural pneumonia
    pneumothorax port portable position positive post posterior postop practitioner pre pregnancy
    preliminary preop pressure previous primary prior private procedure progress projection prone prostate
    protocol provided proximal psychiatry pulmonary pulmonology quadrant quality radial radiograph
    radiographs radiography radiological radiology radius rapid recent recommended recommends recon recovery
    rectal recumbent reference region registrar rehab renal repeat report requested resident respiratory
    response result results review rheumatology rib ribs right room rotated routine sacrum sagittal scan
    scaphoid scapula scoliosis scout screening scrotum second section sections seen segment semi sepsis
    septic series service severe shock short shortness shoulder side silhouette single sinus sit site
    sitting six size skeletal skull small soft software solid spectroscopy spine spleen stable standard
    standing stated states status stent step stepdown sternal sternum stomach stress stroke structures study
    subclavian subsequently superior supervisor supine support surgery surgical swelling symptoms systemic
    tank team tech technical technique technologist technologists telemetry temporal tenderness testicular
    tests the thigh third thoracic thorax three thumb thyroid tibia tip tissue tissues tomography total
    trace trachea tracheal trans transplant transverse trauma traumatic treatment triage tube tubes tumor
    two type ulna ultrasound uncertain unchanged underlying unit unknown unremarkable upper upright ureter
    urinary urology us uterus valve valvular vascular vein venous ventral ventricle vertebra vertebral
    vessel vessels via view views volume wall ward was weakness week weight well were who will wrist xray
    yes zone
    """.split()
)
"""Words that no name is made of: "Left Hand, PA" is a view of a hand."""
