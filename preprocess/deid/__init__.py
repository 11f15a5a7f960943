"""De-identification: DICOM headers, burned-in text, tables and reports, with one key and an audit.

``run.deidentify`` cleans a tree, ``text.deidentify_text`` one report, ``header.clean_dataset`` one header,
``audit.audit`` searches what is left. Each is imported from its own module: a worker that cleans
reports alone needs none of the others.
"""
