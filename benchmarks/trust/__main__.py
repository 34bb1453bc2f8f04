from benchmarks.trust.run import main

main()
