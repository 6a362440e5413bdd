"""`report`: compiles a model's report, writes its files, and checks committed reports and expectations.

A report is the document, its pictures (separate files for Markdown only), and a record of its figures and its request, so
that a later run can repeat the request and compare number by number.
"""
