/**
 * Has every fiber of a test file yield after a few operations instead of 2,048, so that interruption and other fibers come between any
 * two steps. `npm run test:yielding` runs all tests like this.
 */
import { MaxOpsBeforeYield } from "effect/Scheduler"

/** With fewer, effects that must make progress between two yields would starve. */
const operations = 5

void Object.assign(MaxOpsBeforeYield, { defaultValue: () => operations, "~effect/Context/defaultValue": operations })
