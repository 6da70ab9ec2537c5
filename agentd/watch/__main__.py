import sys

from agentd.watch.watcher import main

main(sys.argv[1:])
