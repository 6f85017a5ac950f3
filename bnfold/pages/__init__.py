"""Reports for people: a self-contained HTML file with pictures, or Markdown, from the values of `bnfold.report`."""
