// `npm run bench`: runs the benchmarks, or explains that this Node.js is too old to run their TypeScript.
const [major, minor] = process.versions.node.split(".").map(Number)

if (major > 22 || (major === 22 && minor >= 18)) {
  await import("./all.ts")
} else {
  console.error(
    `The benchmarks require Node.js 22.18 or later, which runs TypeScript directly; this is ${process.version}`
  )
  process.exitCode = 1
}
