from benchmarks.method.run import main

main()
