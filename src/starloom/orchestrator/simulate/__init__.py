"""The simulator: the real coordinator, agent cores and channels, with everything around them made of chance.

    loop        virtual time, processes, and chance       network    streams between agents and orchestrator
    disk        the journal and the job store             hub        the orchestrator's sessions
    daemon      the orchestrator's process                agent      an agent's process: its session
    running     an agent's fetches, runs and results      clients    submit, repeat, cancel, follow
    workload    random nodes and constellations           model      what stages give, and what jobs must give
    trouble     faults                                    judge      the properties, told of all that happens
    world       all of these together                     runs       many seeds, and their sum
    snapshot    what a restart begins with now and then
    streams     streams between agents: buffers, calls    streamrun  a stage that reads or gives one
    streamwork  jobs that have them                       flowing    what must hold of them
    many        a planner for thousands of nodes          properties  what must hold; `property`, `outcomes`

The same seed gives the same run, event by event, on any machine: everything is drawn from `loop.Chance`, and
nothing depends on the order of sets or on hashes.
"""
