"""The service that clients talk to: HTTP routes, the command line, and the processes behind `salem serve`.

Rooms, top first. A room imports only from rooms below it (`.importlinter` holds the rule):

    cli          commands: start the service, or talk to a running one over HTTP
    api          thin HTTP routes, problem documents, middleware
    service      supervisor, reconciler, doctor
    serving      keeps models in memory and answers as any version
    validation   rules that a request must meet; pure functions

Must not know how an edit is made: `app` never imports `worker`. Start with `app/api/edits.py`.
A new route is one file in `api` and one line in `main.py`.
"""
