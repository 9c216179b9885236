// A browser fetches no page for a page that lies in a folder, so a search there shows titles without excerpts.
if (location.protocol === 'file:') DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
