from benchmarks.limits.run import main

main()
