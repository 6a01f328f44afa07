// How the search reads text, when it is indexed and in the browser. `waitEvent` is found by "waitEvent", "wait" and "event".
const tokenize = (text) =>
  text.split(/[^\p{Letter}\p{Number}_]+/u).flatMap((word) => {
    const parts = word.split(/(?<=[a-z0-9])(?=[A-Z])/)
    return parts.length > 1 ? [word, ...parts] : [word]
  }).filter((word) => word.length > 1)

export const options = {
  fields: ["title", "page", "text"],
  storeFields: ["title", "page", "kind", "url", "text"],
  tokenize,
  searchOptions: {
    boost: { title: 4, page: 1.5 },
    // What someone types is one word even if it is in camel case: otherwise "waitEvent" finds all that waits.
    tokenize: (text) => text.split(/[^\p{Letter}\p{Number}_]+/u).filter((word) => word.length > 0),
    prefix: true,
    fuzzy: (term) => term.length > 4 ? 0.15 : false,
    combineWith: "AND",
    boostDocument: (_id, _term, stored) => stored?.kind === "project" ? 0.3 : 1
  }
}
