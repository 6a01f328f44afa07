// Prints `N passed, N failed, N skipped` from vitest's JSON report (given on the command line). A test file that cannot be loaded
// counts as one failure. Exits with 1 if anything failed or no test passed.
import { readFileSync } from "node:fs"

const report = JSON.parse(readFileSync(process.argv[2], "utf8"))
const unloaded = report.testResults.filter((file) =>
  file.status === "failed" && !file.assertionResults.some((test) => test.status === "failed")
)
const passed = report.numPassedTests
const failed = report.numFailedTests + unloaded.length
const skipped = report.numPendingTests + report.numTodoTests
console.log(`${passed} passed, ${failed} failed, ${skipped} skipped`)
if (failed > 0 || passed === 0) process.exitCode = 1
